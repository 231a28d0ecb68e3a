# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Output folders: probed, with enough space, held by one process."""

import errno
import signal
import subprocess
import sys

import pytest
import torch

from diffusers_craft import UserError
from diffusers_craft.core.output import FolderLock, full_disk_named, probe_folder, require_space


HOLD = "import sys, time; from pathlib import Path; from diffusers_craft.core.output import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_a_folder_that_cannot_be_one_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing/x"):
        with pytest.raises(UserError, match=r"^--output_dir: expected a folder that can be written, found .* \(") as e:
            probe_folder(folder)
        assert "\n" not in str(e.value)
    made = probe_folder(tmp_path / "new" / "one")
    assert made.is_dir() and not list(made.iterdir())


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert probe_folder("~/runs") == tmp_path / "runs"


def test_missing_space_is_said_in_readable_units(tmp_path):
    require_space(tmp_path, 1, "weights")
    with pytest.raises(
        UserError, match=r"^--output_dir: expected 1000000000.0 GB free for weights, found .* [GM]B in "
    ):
        require_space(tmp_path, 10**18, "weights")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(code, tmp_path):
    with pytest.raises(UserError, match=r"^disk full: expected 2.0 GB free for a checkpoint, found .* in "):
        with full_disk_named(tmp_path, 2 * 10**9, "a checkpoint"):
            raise OSError(code, "No space left on device")


def test_torchs_error_of_a_full_disk_is_understood_and_other_errors_stay(tmp_path):
    broken = torch.nn.Linear(2, 2)
    broken.hook = lambda: None  # cannot be pickled
    with pytest.raises(Exception) as other:
        with full_disk_named(tmp_path, 1, "a checkpoint"):
            torch.save(broken, tmp_path / "x.pt")
    assert not isinstance(other.value, UserError)
    with pytest.raises(UserError, match="^disk full"):
        with full_disk_named(tmp_path, 10**18, "a checkpoint"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 13550080 vs 13549968")


def test_a_second_process_is_kept_out_until_the_first_one_dies(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        words = f"expected a folder in which no other run works, found .* in use by process {first.pid} of "
        with pytest.raises(UserError, match=words):
            FolderLock(tmp_path)
        first.send_signal(signal.SIGKILL)
        first.wait()
        lock = FolderLock(tmp_path)  # a dead process leaves its file, not its lock
    finally:
        first.kill()
        first.stdout.close()
    lock.release()
    assert not list(tmp_path.iterdir())
