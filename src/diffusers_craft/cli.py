# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What every command-line script does alike: turn user errors into one line, record the run as JSON."""

import importlib.metadata
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import __version__
from .workdir import atomic_write_json


USER_ERROR_EXIT_CODE = 2  # argparse's own
_LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "pillow", "pyarrow")
_SECRET_ENDINGS = ("token", "api_key", "password")


def run_script(main: Callable[[Namespace], Any], args: Namespace) -> None:
    """Calls `main(args)`; a user error ends the process with one line on stderr and exit code 2.

    A user error is a `ValueError` raised by this package or by the script itself. One that comes out of a library is a
    defect, whose traceback is needed, and is left alone.

    Args:
        main (`Callable`): the script's `main`.
        args (`argparse.Namespace`): its parsed arguments.
    """
    try:
        main(args)
    except ValueError as error:
        if not _raised_by_us(error.__traceback__):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE) from error


def _raised_by_us(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return module == "__main__" or module.split(".")[0] == "diffusers_craft"


def default_device() -> str:
    """The device of this process: each rank of `accelerate launch` takes its own GPU; without GPUs the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of the libraries that decide a result (`None` if not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "diffusers_craft": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def write_run_json(path: str | Path, options: Namespace | Mapping[str, Any], **results: Any) -> None:
    """Writes a run's resolved options, seed and library versions beside its output; secrets are left out.

    Args:
        path (`str` or `Path`): the JSON file, e.g. `outputs/craft/craft_run.json`.
        options (`argparse.Namespace` or `Mapping`): the resolved options; `seed` is repeated at the top level.
        results (`Any`): further top-level entries, e.g. `loss_history=[...]`; `paths` is `local_paths` of all others
            unless given, for what was there when the run began.
    """
    named = dict(options) if isinstance(options, Mapping) else vars(options)
    public = {name: value for name, value in named.items() if not name.endswith(_SECRET_ENDINGS)}
    content = {"options": public, "paths": local_paths({"options": public, **results})}
    content |= {"seed": public.get("seed"), "versions": versions(), **results}
    atomic_write_json(Path(path), content)


def local_paths(record: Any) -> dict[str, str]:
    """Which texts of a record name files or folders, here and now: only now can a path be told from a Hub id.

    Args:
        record (`Any`): JSON-like data; also the VALUE of a text NAME=VALUE counts, and every `output_dir`.

    Returns:
        `dict[str, str]`: text to absolute path.
    """
    return {text: os.path.abspath(text) for text, is_output in _texts(record) if is_output or os.path.exists(text)}


def recorded_option(record: Mapping[str, Any], name: str) -> Any:
    """An option of a recorded run; a path is the absolute one that it meant where the run was made.

    Args:
        record (`Mapping`): what `write_run_json` wrote.
        name (`str`): the option, whose value is a text or `None`.
    """
    value = record["options"].get(name)
    return record.get("paths", {}).get(value, value)


def _texts(value: Any, is_output: bool = False) -> Iterator[tuple[str, bool]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, key == "output_dir")
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, (str, os.PathLike)):
        yield os.fspath(value), is_output
        yield os.fspath(value).partition("=")[2], False


def parse_pairs(flag: str, texts: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Reads what a repeatable flag collected, `NAME=VALUE` each.

    Args:
        flag (`str`): the flag, for error texts, e.g. `"--reward_checkpoint"`.
        texts (`Sequence[str]`): what the user wrote.
        names (`Collection[str]`): the names that may be given, each once.

    Returns:
        `dict[str, str]`: name to value.

    Raises:
        ValueError: if a text is no pair, or its name is unknown or repeated.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value or name not in names or name in pairs:
            raise ValueError(f"{flag}: expected NAME=VALUE, with a NAME of {', '.join(names)} once, found {text!r}")
        pairs[name] = value
    return pairs
