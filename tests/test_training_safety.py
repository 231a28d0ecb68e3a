# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""No run loses its result: folders probed first, weights written first, checkpoints by default, full disks in one line."""

import errno
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from safetensors.torch import safe_open
from training_driver import environment, losses, run_json, same, weights

from diffusers_craft import TrainingRun, UserError, load_tuned_pipeline
from diffusers_craft.training import checkpoints
from diffusers_craft.training import run as training


SHORT = ["--max_train_steps=3", "--train_batch_size=2", "--gradient_accumulation_steps=1"]


@pytest.mark.parametrize("lora", [[], ["--use_lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing/x"])
def test_a_folder_that_cannot_be_written_is_known_before_anything_is_loaded(train, tmp_path, lora, place, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("diffusers_craft.models.family.Family.load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(
        UserError, match="^--output_dir: expected a folder(, found the file| that can be written, found)"
    ):
        train("sd15", place, *SHORT, *lora)


@pytest.mark.parametrize("flag", ["caption_column", "image_column"])
def test_a_column_that_is_not_there_is_known_before_anything_is_loaded(train, flag, monkeypatch):
    monkeypatch.setattr("diffusers_craft.models.family.Family.load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=f"^--{flag}: expected one of the dataset's columns .* found 'typo'"):
        train("sd15", "run", *SHORT, f"--{flag}=typo")


def test_half_precision_of_the_launchers_configuration_is_named_as_such(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="^accelerate's configuration, mixed_precision: expected bf16 or no without a"):
        train("sd15", "run", *SHORT)


def test_the_base_may_be_gone_at_the_end(train, random_sd15, tmp_path, monkeypatch):
    base = shutil.copytree(random_sd15, tmp_path / "base")
    flag = f"--pretrained_model_name_or_path={base}"
    expected = weights(train("sd15", "whole", *SHORT, flag))
    finish = TrainingRun.finish
    monkeypatch.setattr(TrainingRun, "finish", lambda run: (shutil.move(base, tmp_path / "away"), finish(run)))
    words = (
        r"expected a diffusers pipeline folder.*the trained unet is safe in .*lost/unet, which evaluate_craft.py takes"
    )
    with pytest.raises(UserError, match=words + r"\)$"):
        train("sd15", "lost", *SHORT, flag)
    assert same(weights(tmp_path / "lost"), expected)
    tuned = load_tuned_pipeline(tmp_path / "lost", str(tmp_path / "away"), device="cpu")
    assert same(tuned.unet.state_dict(), expected)
    folder = tmp_path / "adapters"
    shutil.move(tmp_path / "away", base)
    with pytest.raises(UserError, match=words + "; with the base in place again, --resume_from_checkpoint latest"):
        train("sd15", "lost", *SHORT, flag, "--checkpointing_steps=2")
    shutil.move(tmp_path / "away", base)
    assert train("sd15", "adapters", *SHORT, "--use_lora", flag) == folder  # adapters need no base at the end
    assert (folder / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("lora", [[], ["--use_lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("fault", ["base", "disk"])
def test_validation_images_that_cannot_be_drawn_end_no_run(
    lora, fault, train, random_sd15, tmp_path, monkeypatch, caplog
):
    base, draw = shutil.copytree(random_sd15, tmp_path / "base"), TrainingRun.validate

    def validate(run):
        with monkeypatch.context() as patch:
            if fault == "disk":
                patch.setattr(training, "draw_validation_images", full)
            else:
                shutil.move(base, tmp_path / "away")
            draw(run)
        if fault == "base":
            shutil.move(tmp_path / "away", base)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TrainingRun, "validate", validate)
    flags = ["--train_batch_size=16", "--validation_prompt=a", "--validation_epochs=1", "--num_validation_images=1"]
    folder = train("sd15", "run", *SHORT, *flags, *lora, f"--pretrained_model_name_or_path={base}")
    assert (folder / "craft_run.json").is_file() and caplog.text.count(" were not drawn: ") >= 1
    assert [path.name for path in (folder / "validation").glob("*/*.png")] == ["0.png"]


def test_the_result_is_what_diffusers_writes(train, random_sd15, random_sdxl, tmp_path):
    for family, base in (("sd15", random_sd15), ("sdxl", random_sdxl)):
        folder = train(family, family, *SHORT)
        pipeline = DiffusionPipeline.from_pretrained(folder)
        pipeline.save_pretrained(tmp_path / "again" / family)
        written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "craft_run.json"}
        again = tmp_path / "again" / family
        assert written == {str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()}
        for name in written:
            if name.endswith(".safetensors"):
                assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_a_killed_run_goes_on_by_default(train, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "_DEFAULT_STEPS", 2)
    six = ["--max_train_steps=6", *SHORT[1:]]
    whole = train("sd15", "whole", *six)
    assert not list(whole.glob("checkpoint-*")), "what only a killed run needs goes at the end"
    steps = TrainingRun.steps

    def killed(run):
        for step in steps(run):
            if step == 5:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, "steps", killed)
        train("sd15", "killed", *six)
    assert (tmp_path / "killed" / "checkpoint-4").is_dir()
    resumed = train("sd15", "killed", *six, "--resume_from_checkpoint=latest")
    assert losses(resumed) == losses(whole) and same(weights(resumed), weights(whole))
    assert not list(resumed.glob("checkpoint-*"))


def test_checkpoints_that_were_asked_for_stay(train, monkeypatch):
    monkeypatch.setattr(checkpoints, "_DEFAULT_STEPS", 1)  # of the second run, which asks for none
    four, six = (["--max_train_steps=4", *SHORT[1:]], ["--max_train_steps=7", *SHORT[1:]])
    train("sd15", "run", *four, "--checkpointing_steps=2")
    folder = train("sd15", "run", *six, "--resume_from_checkpoint=latest")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("asked", "limit", "there"),
    [
        (None, None, {}),
        (None, None, {50: True}),  # the one that a killed run left makes room for the next but one
        (None, None, {50: False}),
        (None, None, {50: None}),  # of an earlier version
        (50, 3, {50: False, 100: True}),
        (50, 1, {}),
        (400, 1, {50: False}),
        (50, None, {50: False}),
    ],
)
@pytest.mark.parametrize(("step", "last_step"), [(0, 300), (50, 120), (37, 60), (100, 100)])
@pytest.mark.parametrize("result", [3, 30])
def test_the_space_that_is_asked_for_is_that_of_the_fullest_moment(
    asked, limit, there, step, last_step, result, tmp_path
):
    for number, passing in there.items():
        (tmp_path / f"checkpoint-{number}").mkdir()
        state = {"step": number} if passing is None else {"step": number, "passing": passing}
        (tmp_path / f"checkpoint-{number}" / "training_state.json").write_text(json.dumps(state))
    settings = SimpleNamespace(output_dir=tmp_path, checkpointing_steps=asked, checkpoints_total_limit=limit)
    own = sum(asked is not None or passing is True for passing in there.values())
    held, fullest, limit = 10 * own, 0, 1 if asked is None else limit
    for number in range(step + 1, last_step + 1):
        if number % (asked or 50) == 0 and not (asked is None and number == last_step):
            fullest = max(fullest, held + 10)
            held = held + 10 if limit is None else min(held + 10, 10 * limit)
    fullest = max(fullest, held + result)
    found = checkpoints.Checkpoints(SimpleNamespace(is_main_process=True), settings, 10)
    assert found.space(step, last_step, result) == fullest - 10 * own


@pytest.mark.parametrize("asked", [None, 40])
def test_checkpoints_that_nobody_asked_for_go_at_the_end(asked, tmp_path):
    """Also those of an earlier run by default, and of SIGTERM, where this one was asked for some."""
    for number, passing in {40: False, 50: True, 60: None}.items():
        (tmp_path / f"checkpoint-{number}").mkdir()
        state = {"step": number} if passing is None else {"step": number, "passing": passing}
        (tmp_path / f"checkpoint-{number}" / "training_state.json").write_text(json.dumps(state))
    settings = SimpleNamespace(output_dir=tmp_path, checkpointing_steps=asked, checkpoints_total_limit=None)
    checkpoints.Checkpoints(SimpleNamespace(is_main_process=True), settings, 10).end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-40", "checkpoint-60"]


def test_leftovers_of_a_killed_run_go_before_space_is_asked_for(train, tmp_path, monkeypatch):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [".checkpoint-2.tmp/model.safetensors", "unet/.tmpAb3xYz", f"x.json.{socket.gethostname()}.{dead.pid}.tmp"]
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"half")
    found = []
    monkeypatch.setattr(
        training, "require_space", lambda folder, *_: found.extend((folder / n).exists() for n in names)
    )
    train("sd15", "run", *SHORT)
    assert found == [False] * 3


def test_a_checkpoint_that_does_not_fit_leaves_nothing(train, tmp_path, monkeypatch):
    def full(_, folder):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(UserError, match="^disk full: expected .* free for checkpoint-2, found"):
        train("sd15", "run", *SHORT, "--checkpointing_steps=2")
    assert not list((tmp_path / "run").glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        (
            "diffusers_craft.training.model.FullWeights.save",
            UserError,
            "^disk full: expected .* free for the result, ",
        ),
        (
            "diffusers_craft.training.model.FullWeights.save_rest",
            UserError,
            "^disk full: .* for the base's other parts, ",
        ),
        ("diffusers_craft.training.run.TrainingRun._pipeline", RuntimeError, "^unexpected pos"),
    ],
)
def test_only_what_is_written_can_fill_the_disk(place, error, words, train, monkeypatch):
    def fails(*_):
        raise RuntimeError("unexpected pos 13550080 vs 13549968")

    finish, usage = TrainingRun.finish, shutil.disk_usage("/")._replace(free=1)

    def full(run):
        monkeypatch.setattr(place, fails)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        finish(run)

    monkeypatch.setattr(TrainingRun, "finish", full)
    with pytest.raises(error, match=words):
        train("sd15", "run", *SHORT)


def test_space_is_asked_for_before_the_first_step(train, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    words = r"^--output_dir: expected .* MB free for the result and as many checkpoints as .* keep, found 0.1 MB in"
    with pytest.raises(UserError, match=words):
        train("sd15", "run", *SHORT)


def test_the_space_that_is_asked_for_is_what_a_run_needs(train, monkeypatch):
    asked = []
    monkeypatch.setattr("diffusers_craft.training.run.require_space", lambda folder, needed, _: asked.append(needed))
    folder = train("sd15", "run", *SHORT, "--checkpointing_steps=1", "--checkpoints_total_limit=2", "--use_ema")
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (
        0.7 * used < asked[0] < 2.5 * used
    )  # one more checkpoint while it is written; configurations beside the tensors


def test_two_runs_in_one_folder_are_told(train, tmp_path):
    code = "import sys, time; from pathlib import Path; from diffusers_craft.core.output import FolderLock\n"
    code += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=f"expected a folder in which no other run works, .* process {other.pid} of"
        ):
            train("sd15", "run", *SHORT)
    finally:
        other.kill()
        other.communicate()
    assert not (train("sd15", "run", *SHORT) / ".lock").exists()


def test_adapters_of_two_equal_runs_are_equal_byte_by_byte(train):
    files = [train("sd15", name, *SHORT, "--use_lora") / "pytorch_lora_weights.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], framework="pt") as file:
        targets = str(file.metadata())
    assert targets.index("to_k") < targets.index("to_out.0") < targets.index("to_q") < targets.index("to_v")


def test_warm_up_that_is_never_over_is_said(train, caplog):
    train("sd15", "run", *SHORT, "--lr_scheduler=cosine", "--lr_warmup_steps=50")
    assert "--lr_warmup_steps 50: the rate is never reached in 3 optimizer steps" in caplog.text


def test_waiting_outlasts_the_timeout_of_the_process_group(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        "import sys\nimport time\nfrom datetime import timedelta\nfrom torch.distributed import distributed_c10d\n"
        "from diffusers_craft import TrainingSettings\nfrom diffusers_craft.scripts import create_accelerator\n"
        "distributed_c10d.default_pg_timeout = timedelta(seconds=3)  # instead of half an hour\n"
        "about = {'pretrained_model_name_or_path': 'tiny-sd15', 'dataset_name': 'none'}\n"
        "accelerator = create_accelerator(TrainingSettings(**about, output_dir=sys.argv[1], report_to='none'))\n"
        "with accelerator.main_process_first():\n"
        "    time.sleep(7 if accelerator.is_main_process else 0)\n"
        "accelerator.wait_for_everyone()\nopen(f'{sys.argv[1]}/done{accelerator.process_index}', 'w')\n"
        "accelerator.end_training()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    command.append(str(tmp_path))
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and len(list(tmp_path.glob("done?"))) == 2, run.stderr[-2000:]


def test_sigterm_leaves_a_checkpoint_from_which_the_run_goes_on(train, monkeypatch, tmp_path):
    six = ["--max_train_steps=6", *SHORT[1:]]
    before = signal.getsignal(signal.SIGTERM)
    whole = train("sd15", "whole", *six)
    backward = TrainingRun.backward
    monkeypatch.setattr("diffusers_craft.training.log.TrainingHub.push_checkpoint", lambda *_: pytest.fail("no time"))

    def told(run, *values):
        backward(run, *values)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(TrainingRun, "backward", told)
        train("sd15", "told", *six)
    assert ended.value.code == 143
    assert [path.name for path in (tmp_path / "told").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = train("sd15", "told", *six, "--resume_from_checkpoint=latest")
    assert losses(resumed) == losses(whole) and same(weights(resumed), weights(whole))
    assert "stop" not in run_json(resumed)["loss_history"][-1]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("place", ["backward", "finish_step", "_finish", None])
def test_the_signal_handler_that_was_there_is_put_back(place, train, monkeypatch, capsys):
    def mine(*_):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        if place is None:
            train("sd15", "run", *SHORT)
        else:
            monkeypatch.setattr(TrainingRun, place, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train("sd15", "run", *SHORT)
            assert capsys.readouterr().err.endswith("\n"), "the error gets a line of its own"
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["unet/config.json", "unet/diffusion_pytorch_model.safetensors"], ["emptied", "flipped"]),
        *itertools.product(["optimizer.bin"], ["cut", "flipped"]),
        *itertools.product(["training_state.json"], ["emptied", "cut", "[]", "{}", '{"step": "3"}']),
    ],
)
def test_a_damaged_checkpoint_is_named(train, kind, name):
    checkpoint = train("sd15", "run", *SHORT, "--checkpointing_steps=1") / "checkpoint-3"
    data = (checkpoint / name).read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    damaged = {"cut": data[: len(data) // 2], "emptied": b"", "flipped": flipped}
    (checkpoint / name).write_bytes(damaged.get(kind, kind.encode()))
    words = "^--resume_from_checkpoint: expected a whole checkpoint, found .*checkpoint-3 .*; move it away"
    with pytest.raises(UserError, match=words) as error:
        train("sd15", "run", "--max_train_steps=4", *SHORT[1:], "--resume_from_checkpoint=latest")
    assert "\n" not in str(error.value)
