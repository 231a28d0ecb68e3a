# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The scripts of the other objectives on two processes: DDP, FSDP and DeepSpeed on CPUs through gloo."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Image
from test_alignment import FIXED, SCRIPTS
from test_training_distributed import DEEPSPEED, FSDP
from training_driver import ROOT, environment, losses, run_json


pytestmark = pytest.mark.slow
REWARD = """
import numpy as np

class Brightness:
    def score(self, prompts, images):
        return np.array([np.asarray(image).mean() / 255 for image in images], dtype=np.float32)
"""


@pytest.fixture
def launch(uneven_sd15, uneven_sdxl, preference_build, tmp_path):
    """`launch("smpo", "out", ...)`: trains on two processes, sharded with `sharding=`, returns the output folder."""
    models = {"sd15": uneven_sd15, "sdxl": uneven_sdxl}

    (tmp_path / "bright.py").write_text(REWARD)

    def run(
        script: str,
        output: str,
        *flags: str,
        backbone: str = "sd15",
        sharding: dict[str, str] | None = None,
        processes: int = 2,
    ) -> Path:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += [str(ROOT / "tests" / "sharded_on_cpus.py")] if sharding else []
        where = [f"--pretrained_model_name_or_path={models[backbone]}", f"--output_dir={tmp_path / output}"]
        where += [f"--dataset_name={preference_build}", f"--backbone={backbone}"]
        command = [*launcher, str(ROOT / "examples" / SCRIPTS[script]), *where, *FIXED, *flags]
        variables = environment() | (sharding or {})
        variables["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-5000:]
        assert run_json(tmp_path / output)["num_processes"] == processes
        return tmp_path / output

    return run


@pytest.mark.parametrize(
    ("backbone", "script", "flags"),
    [("sd15", "preference", ["--objective=dpo"]), ("sdxl", "smpo", ["--inversion_steps=2"])],
    ids=["dpo-sd15", "smpo-sdxl"],
)
@pytest.mark.parametrize("sharding", [FSDP, DEEPSPEED], ids=["fsdp", "deepspeed"])
def test_the_reference_goes_the_way_of_sharded_bfloat16_weights(launch, sharding, backbone, script, flags):
    """Both cast the norms' weights too, which autocast leaves alone."""
    if sharding is DEEPSPEED:
        pytest.importorskip("deepspeed")
    bf16 = ["--mixed_precision=bf16", "--max_train_steps=1"]
    folder = launch(script, "out", *flags, *bf16, backbone=backbone, sharding=sharding)
    (first,) = run_json(folder)["loss_history"]
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["winner_change"] == first["loser_change"] == 0.0


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_two_processes_give_the_curve_of_one(launch, objective):
    """KTO's mean gain is one over both processes."""
    common = [f"--objective={objective}", "--max_train_steps=4"]
    one = launch("preference", "one", *common, "--train_batch_size=4", processes=1)
    assert losses(launch("preference", "two", *common)) == pytest.approx(losses(one), rel=1e-3, abs=1e-5)


def test_two_processes_score_what_one_does(launch, make_images, tmp_path):
    images = {"image_0": make_images(5), "image_1": make_images(5, seed=1)}
    dataset = Dataset.from_dict(images | {"prompt": list("abcde"), "label_0": [1, 0, 1, 0, 0.5]})
    for name in images:
        dataset = dataset.cast_column(name, Image())
    dataset.to_parquet(tmp_path / "pairs" / "train.parquet")
    flags = [f"--dataset_name={tmp_path / 'pairs'}", "--rewards=bright:Brightness", "--inversion_steps=2"]
    flags += ["--max_train_steps=3"]
    one = launch("smpo", "one", *flags, "--train_batch_size=4", processes=1)
    assert losses(launch("smpo", "two", *flags)) == pytest.approx(losses(one), rel=1e-3, abs=1e-5)
    assert len(set(losses(one))) == 3
