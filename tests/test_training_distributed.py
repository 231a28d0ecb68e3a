# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Several processes: DDP and FSDP on CPUs through gloo, and the configurations for `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline
from training_driver import ROOT, environment, load_script, losses, run_json, same, weights

from diffusers_craft import TrainingSettings
from diffusers_craft.training.accelerator import _prepare_sharding


COMMON = ["--max_train_steps=5", "--caption_dropout=0.3", "--checkpointing_steps=2"]
WHOLE = [*COMMON, "--train_batch_size=16", "--gradient_accumulation_steps=1"]
SPLIT = [*COMMON, "--train_batch_size=4", "--gradient_accumulation_steps=2"]
CONFIGS = ROOT / "examples" / "craft" / "accelerate_configs"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"}


@pytest.fixture
def launch(arguments, tmp_path):
    """`launch("sdxl", "name", ...)`: trains on two processes, under FSDP or DeepSpeed with `sharding=`."""

    def run(family: str, output: str, *flags: str, sharding: dict[str, str] | None = None) -> Path:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        launcher += [str(ROOT / "tests" / "sharded_on_cpus.py")] if sharding else []
        script = str(ROOT / "examples" / "craft" / f"train_craft_{family}.py")
        command = [*launcher, script, *arguments(family, output, *flags)]
        variables = environment() | (sharding or {})
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-5000:]
        assert run_json(tmp_path / output)["num_processes"] == 2
        return tmp_path / output

    return run


def _assert_equal_but_for_rounding(one: Path, two: Path) -> None:
    assert run_json(one)["global_batch_size"] == run_json(two)["global_batch_size"] == 16
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=0, atol=1e-4)


def test_two_processes_equal_one(train, launch):
    two = launch("sdxl", "two", *SPLIT, "--use_ema")
    _assert_equal_but_for_rounding(train("sdxl", "one", *WHOLE, "--use_ema"), two)


@pytest.mark.slow
def test_two_processes_resume_exactly(launch):
    two = launch("sdxl", "two", *SPLIT, "--use_ema")
    resumed = launch("sdxl", "resumed", *SPLIT, "--use_ema", f"--resume_from_checkpoint={two}/checkpoint-2")
    assert losses(resumed) == losses(two) and same(weights(resumed), weights(two))


@pytest.mark.slow
def test_fsdp_equals_one_process_and_saves_a_whole_pipeline(train, launch):
    flags = ["--validation_prompt=a thing", "--num_validation_images=1", "--validation_epochs=1"]
    sharded = launch("sd15", "sharded", *SPLIT, *flags, sharding=FSDP)
    one = train("sd15", "one", *WHOLE)
    _assert_equal_but_for_rounding(one, sharded)
    grad_norms = [[entry["grad_norm"] for entry in run_json(folder)["loss_history"]] for folder in (one, sharded)]
    assert grad_norms[1] == pytest.approx(grad_norms[0], rel=1e-4)  # of all weights, not of one process's share
    checkpoint = sharded / "checkpoint-4"
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir()  # that it was FSDP
    assert weights(checkpoint).keys() == weights(sharded).keys() and not same(weights(checkpoint), weights(sharded))
    pipeline = DiffusionPipeline.from_pretrained(sharded)
    assert pipeline("a thing", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)
    assert len(list((sharded / "validation").rglob("*.png"))) == 5  # a batch is more than a pass


@pytest.mark.slow
def test_fsdp_resumes_exactly_and_trains_in_bfloat16(train, launch):
    whole = launch("sd15", "whole", *SPLIT, sharding=FSDP)
    resumed = launch("sd15", "resumed", *SPLIT, f"--resume_from_checkpoint={whole}/checkpoint-2", sharding=FSDP)
    assert losses(resumed) == losses(whole) and same(weights(resumed), weights(whole))
    mixed = launch("sdxl", "mixed", *SPLIT, "--mixed_precision=bf16", sharding=FSDP)
    assert losses(mixed) == pytest.approx(losses(train("sdxl", "one", *WHOLE)), abs=0.02)


@pytest.mark.slow
def test_deepspeed_equals_one_process_and_resumes(train, launch):
    pytest.importorskip("deepspeed")
    clip = "--max_grad_norm=0.1"
    sharded = launch("sd15", "sharded", *SPLIT, clip, sharding=DEEPSPEED)
    one = train("sd15", "one", *WHOLE, clip)
    _assert_equal_but_for_rounding(one, sharded)
    assert list((sharded / "checkpoint-4").rglob("*optim_states.pt"))  # that it was DeepSpeed
    resumed = launch(
        "sd15", "resumed", *SPLIT, clip, f"--resume_from_checkpoint={sharded}/checkpoint-2", sharding=DEEPSPEED
    )
    assert losses(resumed) == losses(sharded) and same(weights(resumed), weights(sharded))
    mixed = launch("sdxl", "mixed", *SPLIT, "--mixed_precision=bf16", sharding=DEEPSPEED)
    assert losses(mixed) == pytest.approx(losses(train("sdxl", "plain", *WHOLE)), abs=0.02)


def _settings(**changes) -> TrainingSettings:
    numbers = {"max_grad_norm": 0.5, "train_batch_size": 4, "gradient_accumulation_steps": 8}
    return TrainingSettings(pretrained_model_name_or_path="x", dataset_name="x", **numbers, **changes)


def test_sizes_stay_float32_under_fsdp():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "MixedPrecisionPolicy"):
        pytest.skip("FSDP2 came with torch 2.6")
    policy = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16)
    plugin = SimpleNamespace(mixed_precision_policy=policy)
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    _prepare_sharding(accelerator, _settings())
    changed = plugin.mixed_precision_policy
    assert (changed.param_dtype, changed.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert changed.cast_forward_inputs is False


def test_deepspeed_takes_its_numbers_from_the_flags():
    plugin = SimpleNamespace(deepspeed_config={"gradient_accumulation_steps": 1, "zero_optimization": {"stage": 2}})
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    _prepare_sharding(accelerator, _settings())
    expected = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8, "gradient_clipping": 0.5}
    expected |= {"zero_allow_untested_optimizer": True}
    assert plugin.deepspeed_config == expected | {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"use_lora": True}, "--use_lora"), ({"use_ema": True}, "--use_ema"), ({"train_dtype": "bf16"}, "--train_dtype")],
)
def test_what_needs_whole_weights_is_refused(changes, flag):
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match=f"{flag}.*: expected one process or DDP, .*, found FSDP"):
        _prepare_sharding(accelerator, _settings(**changes))
    _prepare_sharding(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU), _settings(**changes))


@pytest.mark.parametrize(
    ("name", "kind", "machines"),
    [
        ("ddp", DistributedType.MULTI_GPU, 1),
        ("fsdp", DistributedType.FSDP, 1),
        ("deepspeed_zero2", DistributedType.DEEPSPEED, 1),
        ("multi_node", DistributedType.MULTI_GPU, 2),
    ],
)
def test_configurations_are_what_accelerate_reads(name, kind, machines):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    assert config.num_processes == 8 * machines and config.mixed_precision == "bf16"
    if kind == DistributedType.FSDP:
        names = {f"FSDP_{key.removeprefix('fsdp_').upper()}": str(value) for key, value in config.fsdp_config.items()}
        assert FSDP.items() - {("ACCELERATE_USE_FSDP", "true")} <= names.items()  # the settings tested above
    if kind == DistributedType.DEEPSPEED:
        assert config.deepspeed_config["zero_stage"] == 2


def test_the_slurm_script_gives_every_machine_its_rank(tmp_path):
    """Run with stand-ins for SLURM's and accelerate's commands: two machines, one after the other."""
    commands = {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; for id in 0 1; do SLURM_NODEID=$id "$@"; done',
        "accelerate": f'printf "%s|" "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT / "examples" / "craft"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = str(ROOT / "examples" / "craft" / "slurm_train.sh")
    subprocess.run(
        ["bash", script, "--seed", "3", "--validation_prompt", "a thing"], env=os.environ | slurm, check=True
    )
    calls = [line.split("|") for line in (tmp_path / "calls").read_text().splitlines()]
    for rank, call in enumerate(calls):
        flags = dict(zip(call, call[1:], strict=False))
        assert (flags["--machine_rank"], flags["--main_process_ip"]) == (str(rank), "node-a")
        assert (flags["--num_machines"], flags["--num_processes"]) == ("2", "8")
        assert Path(flags["--config_file"]).is_file() and flags["--validation_prompt"] == "a thing"
        script_flags = call[next(i for i, word in enumerate(call) if word.endswith("train_craft_sdxl.py")) + 1 : -1]
        load_script("sdxl").parse_args(script_flags)
    assert len(calls) == 2


def test_sharding_that_is_not_set_up_is_said(train, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    train("sd15", "out", "--max_train_steps=1", "--train_batch_size=2", "--gradient_accumulation_steps=1")
    assert "FSDP was asked for, but accelerate sets it up on several GPUs only: not sharded." in caplog.text
