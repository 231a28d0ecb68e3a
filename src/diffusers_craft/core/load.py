# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a user names by a text: a class as `module:Class`, a dataset of the Hub or of a folder."""

import importlib
import os
import sys
from operator import attrgetter
from typing import Any

from ..errors import UserError


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


def load_hub_dataset(name: str, split: str, expected: str, found: str | None = None) -> Any:
    """A split of a Hub id or a local folder, or a `UserError` of what was expected and found, by default `name`."""
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{expected}, found {(found or name)!r}: {reason}") from None
