# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Output folders: probed, with enough space, held by one process."""

import builtins
import errno
import itertools
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from training_driver import load_example

from diffusers_craft import UserError
from diffusers_craft.core.output import FolderLock, full_disk_named, probe_folder, require_space
from diffusers_craft.core.workdir import WorkDir


HOLD = "import sys, time; from pathlib import Path; from diffusers_craft.core.output import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_a_folder_that_cannot_be_one_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    can_be_written = r"expected a folder that can be written, found /proc/nothing/x \("
    places = {tmp_path / "file": "expected a folder, found the file", "/proc/nothing/x": can_be_written}
    for (folder, words), make in itertools.product(places.items(), (True, False)):
        with pytest.raises(UserError, match=f"^--output_dir: {words}") as e:
            probe_folder(folder, make=make)
        assert "\n" not in str(e.value)
    probe_folder(tmp_path / "new" / "one", make=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    made = probe_folder(tmp_path / "new" / "one")
    assert made.is_dir() and not list(made.iterdir())


@pytest.mark.parametrize(
    ("script", "loads", "flags"),
    [
        (
            "build_craft_dataset",
            "load_build_prompts",
            "--pretrained_model_name_or_path tiny-sd15 --prompts tiny-train",
        ),
        ("evaluate_craft", "Evaluation", "--base tiny-sd15 --prompts tiny-heldout"),
        ("score_images", "open_source", "--images here"),
    ],
)
def test_a_folder_that_cannot_be_one_is_named_before_anything_is_loaded(script, loads, flags, monkeypatch):
    module = load_example(script)
    monkeypatch.setattr(module, loads, lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="^--output_dir: expected a folder that can be written, found /proc/nothing/x"):
        module.main(module.parse_args([*flags.split(), "--output_dir=/proc/nothing/x"]))


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert probe_folder("~/runs") == WorkDir("~/runs").path == tmp_path / "runs"


def test_missing_space_is_said_in_readable_units(tmp_path):
    require_space(tmp_path, 1, "weights")
    with pytest.raises(
        UserError, match=r"^--output_dir: expected 1000000000.0 GB free for weights, found .* [GM]B in "
    ):
        require_space(tmp_path, 10**18, "weights")


def test_a_disk_that_does_not_know_its_size_is_taken(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=0, used=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path, 1, "weights")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("library", ["os", "safetensors"])
def test_a_full_disk_is_one_line(code, library, tmp_path):
    error = OSError(code, "No space left on device")
    if library == "safetensors":
        error = SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {code})")
    with pytest.raises(UserError, match=r"^disk full: expected 1.0 kB free for a checkpoint, found .* in "):
        with full_disk_named(tmp_path, 1000, "a checkpoint"):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("I/O error: Permission denied (os error 13)"),
    ],
)
def test_no_other_error_is_called_a_full_disk(error, tmp_path):
    with pytest.raises(type(error)) as raised:
        with full_disk_named(tmp_path, 10**18, "a checkpoint"):
            raise error
    assert raised.value is error


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


def test_a_lock_file_of_another_user_is_passed_by(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    FolderLock(tmp_path).release()
