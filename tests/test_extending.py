# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""docs/extending.md: its examples run as they stand there, from outside of the package."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffusers_craft import CRAFTDatasetBuilder, GenerationSettings, load_pipeline, load_prompts, load_tuned_pipeline
from diffusers_craft.scripts import FAMILIES


GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILE = r"# (\w+\.py)\n"  # the first line of a block that is a file
SD3 = "stabilityai/stable-diffusion-3.5-medium"


def blocks(section: str) -> list[str]:
    """The Python of a section of the guide."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)[1]
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the guide's files and `outputs/build`, which all examples share."""
    home = tmp_path_factory.mktemp("extending")
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S):
        if name := re.match(FILE, block):
            (home / name[1]).write_text(block)
    builder = CRAFTDatasetBuilder(
        load_pipeline("tiny-sd15"),
        rewards={"pickscore": 0.5, "aesthetic": 0.5},
        filter_rule="none",
        num_refinements=2,
        num_samples=4,
        settings=GenerationSettings(num_inference_steps=2),
        output_dir=home / "outputs" / "build",
    )
    builder.build(load_prompts("tiny-train", num_prompts=6))
    return home


@pytest.fixture
def run(home, monkeypatch):
    """Executes the blocks of a section that are no files; returns their variables."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    before = set(sys.modules)

    def run_section(section: str, replace: tuple[str, str] = ("", "")) -> dict:
        variables: dict = {}
        for block in blocks(section):
            AcceleratorState._reset_state(reset_partial_state=True)
            if not re.match(FILE, block):
                exec(compile(block.replace(*replace), section, "exec"), variables)
        return variables

    yield run_section
    for name in set(sys.modules) - before:  # the examples' own
        if str(home) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def record(folder: Path) -> dict:
    return json.loads((folder / "craft_run.json").read_text())


def test_losses(run, home):
    run("A loss")
    anchored, ipo = record(home / "outputs" / "anchored"), record(home / "outputs" / "ipo")
    assert anchored["options"]["objective"] == "AnchoredCRAFT" and anchored["options"]["anchor"] == 0.5
    first = anchored["loss_history"][0]
    assert first["distance"] == 0 and anchored["loss_history"][1]["distance"] > 0, "the reference is the base"
    assert ipo["loss_history"][0]["train_loss"] == pytest.approx(0.1**2), "no margin at the reference"
    assert load_pipeline(str(home / "outputs" / "ipo")).unet is not None


def test_a_reward(run, home):
    dataset = run("A reward")["dataset"]
    assert len(dataset) == 2 and all(0 < value < 1 for value in dataset["brightness"])
    assert (home / "outputs" / "bright" / "scores" / "brightness").is_dir()


@pytest.fixture(scope="module")
def tiny_sd3(tmp_path_factory) -> str:
    """A random Stable Diffusion 3 of a few thousand weights, without T5."""
    torch.manual_seed(0)
    tokenizer = load_pipeline("tiny-sd15").tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = CLIPTextConfig(
        **sizes,
        projection_dim=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    folder = tmp_path_factory.mktemp("sd3")
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return str(folder)


def test_a_family(run, home, tiny_sd3, monkeypatch):
    monkeypatch.delitem(FAMILIES, "sd3", raising=False)
    run("A base family", (SD3, tiny_sd3))
    monkeypatch.delitem(FAMILIES, "sd3")
    folder = home / "outputs" / "sd3"
    history = record(folder)["loss_history"]
    assert len(history) == 2 and record(folder)["family"] == "stable-diffusion-3"
    assert "train_loss" in history[0] and (folder / "pytorch_lora_weights.safetensors").is_file()
    tuned = load_tuned_pipeline(str(folder), tiny_sd3, device="cpu").transformer.state_dict()
    base = load_pipeline(tiny_sd3, device="cpu").transformer.state_dict()
    changed = {name for name, value in base.items() if not torch.equal(value, tuned[name])}
    assert changed and all("attn.to_" in name for name in changed)


def test_metrics(run, home):
    results = run("A metric")["results"]
    found = {(row["metric"], row["model"]): row["mean"] for row in results.rows if row["category"] is None}
    names = ["exact", "aesthetic", "brightness", "diversity", "color_distance"]
    assert list(dict.fromkeys(metric for metric, _ in found)) == names
    assert found["color_distance", "same"] == 0 and found["color_distance", "tiny-sd15"] is None
    assert found["diversity", "same"] == found["diversity", "tiny-sd15"] > 0
    assert "color_distance" in (home / "outputs" / "evaluation" / "table.md").read_text()


def test_rounds(run, home):
    run("Rounds")
    first, second = record(home / "outputs/round-0/model"), record(home / "outputs/round-1/model")
    assert second["options"]["pretrained_model_name_or_path"] == str(Path("outputs/round-0/model"))
    assert first["num_rows"] == second["num_rows"] == 4
