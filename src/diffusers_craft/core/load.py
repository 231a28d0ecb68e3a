# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a user names by a text: a class as `module:Class`, a dataset of the Hub or of a folder."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError


READ_AHEAD = 2**16  # bytes fetched beyond what was asked for


def import_object(spec: str, flag: str | None = None) -> Any:
    """What `"module:attribute"` names, also in the current directory; failures are user errors if a flag says it."""
    module, _, attribute = spec.partition(":")
    here = os.getcwd()
    try:
        if module not in sys.modules:
            sys.path.append(here)  # last: a file here must not hide an installed package
            try:
                importlib.import_module(module)
            finally:
                sys.path.remove(here)
        return attrgetter(attribute)(sys.modules[module])
    except (ImportError, AttributeError, ValueError) as error:
        if flag is None:
            raise
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        found = f"no module {error.name!r} here or among the installed packages" if missing else str(error)
        raise UserError(f"{flag}: expected MODULE:CLASS that can be imported, found {spec!r} ({found})") from error


class HubSource(NamedTuple):
    """A split of a dataset of the Hub or of a local folder."""

    name: str
    config: str | None
    split: str

    @classmethod
    def parse(cls, text: str) -> "HubSource":
        """`NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT`; a split may be a slice such as `train[:100]`."""
        parts = re.split(r":(?![^\[]*\])", text)
        folders = (n for n in range(len(parts), 0, -1) if Path(":".join(parts[:n])).expanduser().is_dir())
        length = next(folders, 1)  # a folder's name may hold colons
        name, rest = ":".join(parts[:length]), parts[length:]
        name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        return cls(name, ":".join(rest[:-1]) or None, (rest[-1:] or [""])[0] or "train")


def load_hub_dataset(source: HubSource, expected: str, found: str | None = None) -> Any:
    """A split with all its columns, or a `UserError` of what was expected and found, by default the name."""
    import datasets

    with _hub_errors(expected, found or source.name):
        return datasets.load_dataset(source.name, source.config, split=source.split)


def read_hub_columns(
    source: HubSource, choose: Callable[[Sequence[str]], list[str]], expected: str
) -> list[dict[str, Any]]:
    """The rows of a split with those columns that `choose` takes of their names; errors as of `load_hub_dataset`.

    Images beside a caption, and other splits, may be a hundred thousand times as large: they are not fetched where the
    files allow it.
    """
    import datasets

    is_near = Path(source.name).is_dir() or not getattr(datasets.config, "HF_HUB_OFFLINE", False)
    with _hub_errors(expected, source.name):
        if is_near and "[" not in source.split:  # no stream begins at a slice
            try:
                return _stream_columns(source, choose)
            except (NotImplementedError, ConnectionError):  # an archive; no network, but maybe all of it in the cache
                pass
        dataset = datasets.load_dataset(source.name, source.config, split=source.split)
        return dataset.select_columns(choose(dataset.column_names)).to_list()


def _stream_columns(source: HubSource, choose: Callable[[Sequence[str]], list[str]]) -> list[dict[str, Any]]:
    import datasets

    options = {"name": source.config, "split": source.split, "streaming": True}
    dataset = datasets.load_dataset(source.name, **options)
    if dataset.info.builder_name == "csv":  # pandas would read the text "null" or "NA" as nothing
        dataset = datasets.load_dataset(source.name, **options, keep_default_na=False)
    if dataset.column_names is None:  # known from the rows alone, as of JSON, whose rows may lack some
        first = next(iter(dataset), {})
        columns = choose(list(first))
        return [{name: row.get(name) for name in columns} for row in dataset]
    columns = choose(dataset.column_names)
    try:
        # Columns lie apart; read-ahead of the default five megabytes would fetch the images between the captions.
        near = {"hf": {"block_size": READ_AHEAD}}
        return list(datasets.load_dataset(source.name, **options, columns=columns, storage_options=near))
    except (ValueError, TypeError):  # no Parquet
        return list(dataset.select_columns(columns))


def hub_reason(error: BaseException | None) -> str | None:
    """What the Hub answered, if that is why a library failed: it hides the answer behind advice of its own."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    while error is not None:
        if isinstance(error, GatedRepoError):
            return "a gated repository: accept its terms on its page, and log in with `hf auth login` or HF_TOKEN"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status is not None and (status == 429 or status >= 500):
            limited = (
                "too many requests; try again in some minutes" if status == 429 else "the Hub fails; try again later"
            )
            return f"HTTP {status} of the Hub ({limited})"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _hub_errors(expected: str, found: str) -> Iterator[None]:
    """Says in one line what `datasets` refused."""
    import datasets

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if configs := re.search(r"(?:available configs|Available): \[(.*)\]", str(error)):
            asked = reason.partition("'")[2].partition("'")[0]  # nothing in "Config name is missing."
            names = configs[1].replace("'", "")
            given = f"no configuration {asked!r}" if asked else "no choice of its configurations"
            reason = f"{given}; name one of {names:.400} as NAME:CONFIG:SPLIT"
        raise UserError(f"{expected}, found {found!r}: {hub_reason(error) or reason}") from None
