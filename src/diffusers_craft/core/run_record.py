# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The record of a run beside its output: options, versions, paths."""

import importlib.metadata
import json
import os
import platform
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from .files import atomic_write_json, read_json


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
    """Writes a run's resolved options without secrets, its seed, library versions and results beside its output.

    `paths` is `local_paths` of all others, unless it is given for what was there when the run began.
    """
    named = dict(options) if isinstance(options, Mapping) else vars(options)
    public = {name: value for name, value in named.items() if not name.endswith(_SECRET_ENDINGS)}
    content = {"options": public, "paths": local_paths({"options": public, **results})}
    content |= {"seed": public.get("seed"), "versions": versions(), **results}
    atomic_write_json(path, content)


def read_run_json(path: str | Path) -> dict[str, Any]:
    """What `write_run_json` wrote; a `UserError` for anything else."""
    record = read_json(path)
    for name in ("options", "paths"):
        if not isinstance(record.get(name, {}), dict) or "options" not in record:
            raise UserError(f"{path}: expected the record of a run with its options, found {json.dumps(record)[:60]}")
    return record


def local_paths(record: Any) -> dict[str, str]:
    """Absolute paths by the texts of a record that name files or folders: only now can they be told from Hub ids.

    Also the VALUE of a text NAME=VALUE counts, and every `output_dir`.
    """
    return {text: os.path.abspath(text) for text, is_output in _texts(record) if is_output or os.path.exists(text)}


def recorded_option(record: Mapping[str, Any], name: str) -> Any:
    """A text or `None` of a run's recorded options; a path is the absolute one that it meant on that machine."""
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
