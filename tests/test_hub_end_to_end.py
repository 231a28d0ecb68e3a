# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The way of users who meet only on the Hub: each step in a fresh process with an empty cache, from Hub ids."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import DatasetCard, ModelCard

from diffusers_craft import tiny


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
REWARDS = ["hps_v2.1", "pickscore", "aesthetic"]
CHECKPOINTS = [f"--reward_checkpoint={name}={tiny.reward_checkpoint(name)}" for name in REWARDS]
LOAD_DATASET = """
from datasets import load_dataset
selected = load_dataset("org/craft-top100", split="train")
streamed = next(iter(load_dataset("org/craft-top100", split="train", streaming=True)))
assert len(selected) == 8 and selected[0]["image"].tobytes() == streamed["image"].tobytes()
assert len(load_dataset("org/craft-top100", "scores", split="train")) == 80
"""
DRAW = """
import hashlib, torch
{load}
pipeline.set_progress_bar_config(disable=True)
noise = torch.Generator().manual_seed(7)
image = pipeline("a red circle", height=64, width=64, num_inference_steps=4, generator=noise).images[0]
print(hashlib.sha256(image.tobytes()).hexdigest())
"""
PIPELINE = "from diffusers import DiffusionPipeline\npipeline = DiffusionPipeline.from_pretrained({!r})"
UNET = """from diffusers import DiffusionPipeline, UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained({!r})
pipeline = DiffusionPipeline.from_pretrained("org/tiny-sd15", unet=unet)"""
LORA = """from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("org/tiny-sd15")
pipeline.load_lora_weights({!r})"""
VALIDATE = """
from huggingface_hub import DatasetCard, ModelCard
DatasetCard.load("org/craft-top100").validate()
for name in ("craft-tiny", "craft-unet", "craft-lora"):
    ModelCard.load("org/" + name).validate()
"""


@pytest.fixture
def run(tmp_path: Path):
    """`run(hub, *command)`: a fresh process, whose caches nobody has used; returns what it printed."""
    outputs: list[str] = []

    def start(hub: HubServer, *command: str | Path) -> str:
        home = tmp_path / f"home-{len(outputs)}"
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = hub.environment(home) | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, command)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        outputs.append(result.stdout + result.stderr)
        assert result.returncode == 0, outputs[-1][-3000:]
        return result.stdout

    start.outputs = outputs
    return start


def script(name: str) -> Path:
    return ROOT / "examples" / "craft" / f"{name}.py"


def train(run: Callable, hub: HubServer, folder: Path, repo_id: str, *flags: str) -> None:
    where = ["--pretrained_model_name_or_path=org/tiny-sd15", "--dataset_name=org/craft-top100", "--report_to=none"]
    steps = ["--resolution=64", "--train_batch_size=8", "--gradient_accumulation_steps=1", "--max_train_steps=3"]
    hub_flags = ["--push_to_hub", f"--hub_model_id={repo_id}"]
    run(
        hub,
        script("train_craft_sd15"),
        *where,
        *steps,
        "--learning_rate=1e-3",
        f"--output_dir={folder}",
        *hub_flags,
        *flags,
    )


def test_from_prompts_to_an_image_over_the_hub(run, tmp_path):
    with HubServer() as hub:
        upload = "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('org/tiny-sd15');"
        upload += f"api.upload_folder(repo_id='org/tiny-sd15', folder_path={tiny.model_path('tiny-sd15')!r});"
        card = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
        upload += f"api.upload_file(repo_id='org/tiny-sd15', path_in_repo='README.md', path_or_fileobj={card!r})"
        run(hub, "-c", upload)

        build = ["--pretrained_model_name_or_path=org/tiny-sd15", "--prompts=tiny-train", "--num_prompts=16"]
        build += ["--filter_rule=none", "--num_samples=8", "--num_inference_steps=4", "--guidance_scale=2"]
        build += [*CHECKPOINTS, f"--output_dir={tmp_path / 'top100'}"]
        run(hub, script("build_craft_dataset"), *build, "--push_to_hub", "--hub_dataset_id=org/craft-top100")
        run(hub, "-c", LOAD_DATASET)

        drawn = {"base": run(hub, "-c", DRAW.format(load=PIPELINE.format("org/tiny-sd15")))}
        for repo_id, load, flags in (
            ("org/craft-tiny", PIPELINE, []),
            ("org/craft-unet", UNET, ["--push_unet_only", "--seed=1"]),
            ("org/craft-lora", LORA, ["--use_lora", "--seed=2"]),
        ):
            folder = tmp_path / repo_id.split("/")[1]
            train(run, hub, folder, repo_id, *flags)
            here = LORA if load is LORA else PIPELINE
            before = run(hub, "-c", DRAW.format(load=here.format(str(folder))))
            drawn[repo_id] = run(hub, "-c", DRAW.format(load=load.format(repo_id)))
            assert drawn[repo_id] == before
        assert len(set(drawn.values())) == 4, "training changed nothing"

        folder, evaluation = tmp_path / "craft-tiny", tmp_path / "evaluation"
        compare = ["--base=base=org/tiny-sd15", f"--tuned=craft={folder}", "--prompts=tiny-heldout", "--num_prompts=4"]
        compare += ["--num_inference_steps=4", *CHECKPOINTS, f"--output_dir={evaluation}"]
        run(hub, script("evaluate_craft"), *compare)
        publish = [f"--output_dir={folder}", "--hub_model_id=org/craft-tiny", f"--evaluation_dir={evaluation}"]
        run(hub, script("publish_craft"), *publish)
        run(hub, "-c", VALIDATE)

        files = hub.repos["model", "org/craft-tiny"].files
        model = ModelCard(files["README.md"].data.decode()).data
        assert (model.base_model, model.datasets, model.license) == (
            "org/tiny-sd15",
            ["org/craft-top100"],
            "apache-2.0",
        )
        assert {result.metric_type for result in model.eval_results} >= set(REWARDS)
        assert "images/evaluation_grid.png" in files
        dataset = DatasetCard(hub.repos["dataset", "org/craft-top100"].files["README.md"].data.decode())
        assert "`org/tiny-sd15`" in dataset.text and "| selected images | 8 |" in dataset.text

        published = [f.data for repo in hub.repos.values() for files in repo.commits.values() for f in files.values()]
        assert not [data for data in published if TOKEN.encode() in data or str(tmp_path).encode() in data]
        seen = [request.path.encode() + request.body for request in hub.requests]
        seen += [output.encode() for output in run.outputs]
        seen += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not [data for data in seen if TOKEN.encode() in data]
