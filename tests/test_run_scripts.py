# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The shell scripts run every stage with flags that the scripts know, and with the recipe's values."""

import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from diffusers_craft import SD15, SDXL


EXAMPLES = Path(__file__).parents[1] / "examples" / "craft"
# Stands for Python: records the scripts' command lines instead of running them, and prints what a download would.
RECORDER = """#!{python}
import json, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    print("prompts.json")
else:
    with open({log!r}, "a") as log:
        print(json.dumps(arguments), file=log)
"""


@pytest.fixture
def run(tmp_path):
    """`run(shell_script, **environment)`: script's name -> parsed arguments of its calls, and all launchers' flags."""

    def record(name: str, **environment: str) -> tuple[dict[str, list[Namespace]], list[list[str]]]:
        log, python = tmp_path / "log", tmp_path / "python"
        python.write_text(RECORDER.format(python=sys.executable, log=str(log)))
        python.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "OUT": str(tmp_path / "out")} | environment
        subprocess.run(["bash", str(EXAMPLES / name)], env=environment, check=True, capture_output=True, text=True)
        calls, launchers = {}, []
        for line in log.read_text().splitlines():
            arguments = json.loads(line)
            script = next(index for index, text in enumerate(arguments) if text.endswith(".py"))
            launchers.append(arguments[:script])
            stem = Path(arguments[script]).stem
            calls.setdefault(stem, []).append(_parse(stem, arguments[script + 1 :]))
        return calls, launchers

    return record


def _parse(stem: str, arguments: list[str]) -> Namespace:
    spec = importlib.util.spec_from_file_location(stem, EXAMPLES / f"{stem}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.parse_args(arguments)  # ends the process with an error for a flag that does not exist


@pytest.mark.parametrize(("family", "backbone", "batch"), [("sd15", SD15, 16), ("sdxl", SDXL, 8)])
@pytest.mark.parametrize("processes", ["1", "8"])
def test_real_models_follow_the_recipe(run, family, backbone, batch, processes):
    calls, launchers = run(f"run_{family}.sh", NUM_PROCESSES=processes)
    assert list(calls) == ["build_craft_dataset", f"train_craft_{family}", "evaluate_craft"]
    assert all(
        launcher == ["-m", "accelerate.commands.launch", "--num_processes", processes] for launcher in launchers
    )
    (build,), (train,), (evaluate,) = calls.values()

    assert (build.prompts, build.num_prompts, build.refiner, build.refiner_model) == (
        "prompts.json",
        10000,
        "openai",
        "qwen-plus",
    )
    assert (build.num_refinements, build.num_seeds, build.filter_rule) == (4, 1, ["hpa"])
    assert build.rewards == ["hps_v2.1=0.4", "pickscore=0.4", "aesthetic=0.2"]
    assert (build.selection, build.num_samples, build.max_per_prompt) == ("top", 100, 1)

    assert train.train_batch_size * train.gradient_accumulation_steps * int(processes) == 128
    assert train.train_batch_size == batch and train.max_train_steps is None and not train.use_lora
    assert backbone.max_train_steps == {"sd15": 120, "sdxl": 200}[family]
    assert train.resolution is None and backbone.resolution == {"sd15": 512, "sdxl": 1024}[family]
    assert (train.learning_rate, train.lr_scheduler, train.loss) == (5e-5, "constant", "craft")
    assert not (train.use_8bit_adam or train.use_adafactor) and train.train_dtype == "fp32"

    assert evaluate.prompts == ["hpdv2", "partiprompts", "pickapic"]
    assert train.dataset_name == build.output_dir and evaluate.tuned == [f"craft={train.output_dir}"]
    model = build.pretrained_model_name_or_path
    assert train.pretrained_model_name_or_path == model and evaluate.base == f"base={model}"
    assert "xl" in model if family == "sdxl" else "v1-5" in model


def test_settings_of_the_environment_arrive(run):
    flags = "--mixed_precision bf16 --gradient_checkpointing --use_lora --learning_rate 1e-4"
    calls, _ = run("run_sd15.sh", BATCH="2", TRAIN_FLAGS=flags, REFINER="template", PROMPTS="mine.txt", SEED="7")
    (build,), (train,), _ = calls.values()
    assert (build.refiner, build.refiner_model, build.prompts, build.seed) == ("template", None, "mine.txt", 7)
    assert (train.train_batch_size, train.gradient_accumulation_steps, train.use_lora) == (2, 64, True)


def test_results_are_published_on_request(run):
    calls, launchers = run("run_sdxl.sh", HUB_ID="org/craft")
    dataset, model = calls["publish_craft"]
    assert (dataset.hub_dataset_id, model.hub_model_id) == ("org/craft-data", "org/craft")
    assert dataset.output_dir == calls["build_craft_dataset"][0].output_dir
    assert model.output_dir == calls["train_craft_sdxl"][0].output_dir
    assert model.evaluation_dir == calls["evaluate_craft"][0].output_dir
    assert launchers[-2:] == [[], []]  # one process


def test_a_batch_that_does_not_divide_128_is_refused(run):
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("run_sdxl.sh", BATCH="6")
    assert error.value.returncode == 2
    assert error.value.stderr == "BATCH x NUM_PROCESSES: expected a divisor of 128, found 6 x 1\n"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_tiny_world_runs_the_same_stages(run, family):
    calls, _ = run("run_tiny.sh", MODEL=f"tiny-{family}")
    assert list(calls) == ["build_craft_dataset", f"train_craft_{family}", "evaluate_craft"]
    assert [train.loss for train in calls[f"train_craft_{family}"]] == ["craft", "sft"]
