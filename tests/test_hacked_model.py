# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What README and LOG say of the alarms: they see a model that cheated its reward, and leave CRAFT and SFT alone.

The demo as it is, and a model trained far too long on the pictures that one reward likes best. A quarter of an hour.
"""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from training_driver import ROOT, environment


pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples" / "craft"
MODEL = ["--pretrained_model_name_or_path", "tiny-sd15", "--seed", 0]
# The demo's, which the work folder insists on; what selects is another.
POOL = ["--prompts", "tiny-train", "--num_prompts", 600, "--refiner", "template", "--num_refinements", 4]
POOL += ["--num_inference_steps", 12, "--guidance_scale", 3, "--generation_batch_size", 32]
ONE_REWARD = ["--rewards", "aesthetic", "--filter_rule", "none", "--num_samples", 16]
TOO_LONG = ["--train_batch_size", 32, "--gradient_accumulation_steps", 1, "--max_train_steps", 1500]
TOO_LONG += ["--learning_rate", 3e-4, "--resolution", 64, "--report_to", "none"]
EVALUATION = [
    "--base",
    "base=tiny-sd15",
    "--prompts",
    "tiny-heldout",
    "--rewards",
    "hps_v2.1",
    "pickscore",
    "aesthetic",
]
EVALUATION += ["--num_inference_steps", 12, "--guidance_scale", 2, "--batch_size", 50, "--seed", 0]


def _run(*command: object, **variables: str) -> None:
    done = subprocess.run([*map(str, command)], env=environment() | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The output of `run_tiny.sh` for seed 0, and the hacked model under `hacked`."""
    folder = tmp_path_factory.mktemp("demo")
    _run("bash", EXAMPLES / "run_tiny.sh", OUT=str(folder), PYTHON=sys.executable)
    shutil.copytree(folder / "dataset", folder / "hacked_dataset")  # the pool is not drawn again
    build, train = EXAMPLES / "build_craft_dataset.py", EXAMPLES / "train_craft_sd15.py"
    _run(sys.executable, build, *MODEL, *POOL, *ONE_REWARD, "--output_dir", folder / "hacked_dataset")
    where = ["--dataset_name", folder / "hacked_dataset", "--output_dir", folder / "hacked"]
    _run(sys.executable, train, *MODEL, *TOO_LONG, *where)
    return folder


def _evaluate(demo: Path, output: str, *flags: object) -> tuple[dict[str, set[str]], dict[tuple[str, str], dict]]:
    """The alarms of each model, and (model, metric) -> row of the results; what was measured is printed."""
    tuned = [demo / name for name in ("sft", "craft", "hacked")]
    script = EXAMPLES / "evaluate_craft.py"
    _run(sys.executable, script, *EVALUATION, "--tuned", *tuned, *flags, "--output_dir", demo / output)
    results = json.loads((demo / output / "results.json").read_text())
    alarms = defaultdict(set)
    for alarm in results["alarms"]:
        alarms[alarm["model"]].add(alarm["alarm"])
    for check in results["checks"]:
        assert check["value"] is not None, check["message"]  # a check that is skipped cannot fire
        print(check["message"], "ALARM" if check["fired"] else "")
    rows = {(row["model"], row["metric"]): row for row in results["rows"] if row["category"] is None}
    for (model, metric), row in rows.items():
        print(model, metric, row["mean"], row["win_rate"])
    return alarms, rows


def test_a_hacked_model_sets_off_alarms_and_craft_does_not(demo):
    alarms, rows = _evaluate(demo, "evaluation", "--num_prompts", 300)
    assert alarms == {"hacked": {"contrast", "reward_gap"}}
    assert rows["hacked", "aesthetic"]["win_rate_low"] > 0.5 > rows["hacked", "exact"]["win_rate_high"]
    assert rows["craft", "aesthetic"]["win_rate_low"] > 0.5 < rows["craft", "exact"]["win_rate_low"]


def test_several_seeds_show_that_it_draws_one_picture_a_prompt(demo):
    """The gap between aesthetic and exact is there too, but at its limit on 60 prompts (LOG.md)."""
    alarms, _ = _evaluate(demo, "evaluation_seeds", "--num_prompts", 60, "--images_per_prompt", 4)
    assert set(alarms) == {"hacked"} and {"contrast", "seed_diversity"} <= alarms["hacked"]
