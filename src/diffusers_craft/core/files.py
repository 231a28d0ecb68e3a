# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole, and hashes of what is in them."""

import contextlib
import hashlib
import json
import os
import re
import socket
import time
import zlib
from pathlib import Path
from typing import Any

from ..errors import UserError
from .output import full_disk_named


MAX_NAME = 120  # bytes of UTF-8; file systems take 255, of which endings need some
STALE_SECONDS = 24 * 3600  # age at which a temporary file of another machine counts as left over


def atomic_write_bytes(path: str | os.PathLike, data: bytes | bytearray | memoryview) -> None:
    """Writes a file that readers see whole or not at all, whatever happens to this process; makes missing folders.

    A full disk is a `UserError`.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    with full_disk_named(existing, len(data), path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk needs its space, and the error says what is free
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # network file systems without folder sync
        os.fsync(folder)  # makes the rename durable
    os.close(folder)


def atomic_write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes strict, indented JSON (no NaN) as `atomic_write_bytes` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=os.fspath)
    atomic_write_bytes(path, (text + "\n").encode())


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; a `UserError` if it is broken or holds something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {json.dumps(found)[:60]}")
    return found


def is_file_name(text: str) -> bool:
    """Whether a name may be part of a path: letters, digits, `.`, `_` and `-`, no way out of the folder, not too long."""
    return bool(re.fullmatch(r"[\w.-]+", text)) and text.strip(".") != "" and len(text.encode()) <= MAX_NAME


def with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file whose metadata stand in order; the library writes them in a random one."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the format asks
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def fingerprint(value: Any) -> str:
    """A short hash of anything that JSON can hold, to stand for long options (a list of prompts) in `options`."""
    text = json.dumps(value, sort_keys=True, default=os.fspath)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files whose writer is dead; those of living ranks, and of other programs, stay."""
    for temporary in folder.glob("*.tmp"):
        match = re.fullmatch(r".+\.(?P<host>.+)\.(?P<pid>\d+)\.tmp", temporary.name)
        try:
            if match is None or not temporary.is_file():
                continue
            here = temporary.name.endswith(f".{socket.gethostname()}.{match['pid']}.tmp")
            age = time.time() - temporary.stat().st_mtime
            stale = not _is_running(int(match["pid"])) if here else age > STALE_SECONDS
        except FileNotFoundError:
            continue  # another rank was faster
        if stale:
            temporary.unlink(missing_ok=True)


def remove_unfinished_weights(folder: str | os.PathLike) -> None:
    """Removes what safetensors wrote of a file when it was killed, from a model's folder and those of its parts."""
    for pattern in (".tmp??????", "*/.tmp??????"):  # six random letters
        for unfinished in Path(folder).glob(pattern):
            if unfinished.is_file():
                unfinished.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else it lives, but belongs to somebody else
    return True


def checksums(folder: Path) -> dict[str, str]:
    """CRC-32 of every file below a folder, by its name there: not against forgers, but a gigabyte a second."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        value = 0
        with open(path, "rb") as file:
            while block := file.read(2**24):
                value = zlib.crc32(block, value)
        found[path.relative_to(folder).as_posix()] = f"{value:08x}"
    return found


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below a folder is not the user's own: macOS' `._x.png`, `.ipynb_checkpoints/`, `__MACOSX/`."""
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") for part in parts) or any(part.startswith("__") for part in parts[:-1])
