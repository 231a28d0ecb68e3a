# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Output folders of long runs: can be written, have the space, and belong to one run at a time."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import UserError


try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are not noticed
    fcntl = None

LOCK_FILE = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER = re.compile(r"out of memory|allocate memory|\(os error \d+\)")  # as torch and safetensors say


def probe_folder(folder: str | Path, flag: str = "--output_dir", make: bool = True) -> Path:
    """Writes a file in a folder, so that what cannot be written is known before the work is done; `~` is understood.

    A missing folder is made, or without `make` the nearest one above it is tried.
    """
    folder = Path(folder).expanduser()
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        probe = there / f".probe-{socket.gethostname()}-{os.getpid()}"  # ranks may share the folder
        probe.write_bytes(b"")
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.absolute().parents) if path.is_file())
        raise UserError(f"{flag}: expected a folder, found the file {file}") from None
    except OSError as error:
        raise UserError(f"{flag}: expected a folder that can be written, found {folder} ({error.strerror})") from error
    return folder


def require_space(folder: Path, needed: int, purpose: str, flag: str = "--output_dir") -> None:
    """Refuses a folder on a disk with less than `needed` bytes free."""
    if _lacks(folder, needed):
        found = f"{gigabytes(shutil.disk_usage(folder).free)} in {folder}"
        raise UserError(f"{flag}: expected {gigabytes(needed)} free for {purpose}, found {found}")


def _lacks(folder: Path, needed: int) -> bool:
    usage = shutil.disk_usage(folder)
    return usage.total > 0 and usage.free < needed  # some network file systems do not know their size, and say 0


def gigabytes(size: int) -> str:
    """Bytes as text."""
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB") if size >= 1e5 else (1e3, "kB")
    return f"{size / unit:.1f} {name}"


@contextmanager
def full_disk_named(folder: Path, needed: int, purpose: str) -> Iterator[None]:
    """Says in one line that the disk is full, with the space that is needed.

    safetensors has an error of its own for it; torch's does not say, so the disk itself is asked.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said, code = str(error), getattr(error, "errno", None)
        full = code in _FULL or any(f"os error {number})" in said for number in _FULL)
        other = code is not None or isinstance(error, MemoryError) or _OTHER.search(said)
        if not full and (other or not folder.is_dir() or not _lacks(folder, needed)):
            raise
        free = gigabytes(shutil.disk_usage(folder).free)
        found = f"{free} in {folder}"
        raise UserError(f"disk full: expected {gigabytes(needed)} free for {purpose}, found {found}") from error


class FolderLock:
    """Keeps a second run out of a folder until this process ends or lets it go.

    The system drops the lock of a process that dies, on whatever machine, so none is ever stale. A file system without
    locks is used without, and so is a folder where another user's file lies that may not be opened.
    """

    def __init__(self, folder: Path, flag: str = "--output_dir"):
        self._file: IO[str] | None = None
        if fcntl is None:
            return
        path = folder / LOCK_FILE
        try:
            file = open(path, "a+", encoding="utf-8")
        except PermissionError:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError  # its owner let it go, and removed it, in between
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = " ".join(file.read().split()) or "another process"
            file.close()
            raise UserError(
                f"{flag}: expected a folder in which no other run works, found {folder} in use by {owner}"
            ) from None
        except OSError:
            file.close()
            return
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Lets the folder go; its lock file goes with it."""
        if self._file is not None:
            Path(self._file.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None
