# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The record of a run beside its output: options, versions, paths."""

import importlib.metadata
import os
import platform
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from .files import atomic_write_json


_LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "pillow", "pyarrow")
_SECRET_ENDINGS = ("token", "api_key", "password")


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
