# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a user names by a text: a class as `module:Class`, a dataset of the Hub or of a folder."""

import importlib
import os
import sys
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..errors import UserError


if TYPE_CHECKING:
    from datasets import Dataset


def import_object(spec: str, flag: str | None = None) -> Any:
    """What `"module:attribute"` names; the module may lie in the current directory, as a script's own does not.

    Args:
        spec (`str`): e.g. `"my_package.metrics:FID"`.
        flag (`str`, *optional*): where the user typed it; failures are then user errors.

    Raises:
        UserError: with a flag, if it cannot be imported.
    """
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


def load_hub_dataset(
    name: str,
    split: str = "train",
    config_name: str | None = None,
    cache_dir: str | None = None,
    expected: str = "expected a dataset of the Hub",
    found: str | None = None,
) -> "Dataset":
    """`datasets.load_dataset` whose failures are one line for the user.

    Args:
        name (`str`): Hub id or local folder.
        split (`str`, *optional*, defaults to `"train"`): which split.
        config_name (`str`, *optional*): configuration.
        cache_dir (`str`, *optional*): where `datasets` keeps its copies.
        expected (`str`, *optional*): how the error begins: the flag, and what it takes.
        found (`str`, *optional*): what the user wrote, where that is not `name`.

    Raises:
        UserError: if it is missing, unreachable or empty, or has no such configuration or split.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config_name, split=split, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{expected}, found {(found or name)!r}: {reason}") from None
