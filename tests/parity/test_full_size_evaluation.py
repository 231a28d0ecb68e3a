# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`evaluate_craft.py` at full size: SD1.5, HPS v2.1, the aesthetic score, GenEval and T2I-CompBench, weights random."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from parity_checkpoints import (
    clip_config,
    randomize,
    write_bert_tokenizer,
    write_clip,
    write_clip_tokenizer,
    write_head,
    write_hps,
)
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPTextModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from diffusers_craft.rewards.benchmarks.compbench import CompBenchReward


SCRIPT = Path(__file__).parents[2] / "examples" / "craft" / "evaluate_craft.py"
PROMPTS = {
    "geneval": {
        "prompt": "a photo of a red dog",
        "category": "colors",
        "metadata": {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]},
    },
    "t2i_compbench": {"prompt": "a red circle and a robot", "category": "color"},
}


def write_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5 by its published configuration, in half precision."""
    torch.manual_seed(0)
    (folder / "tokenizer").mkdir(parents=True)
    write_clip_tokenizer(folder / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **blocks),
        text_encoder=CLIPTextModel(clip_config("official", "L").text_config),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


def write_detector(folder: Path) -> Path:
    """Mask2Former with Swin-S, by the configuration of `facebook/mask2former-swin-small-coco-instance`."""
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = SwinConfig(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=stages)
    Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=80)).save_pretrained(folder)
    return folder


def write_blip(folder: Path) -> Path:
    """BLIP-VQA by transformers' default configuration, that of `Salesforce/blip-vqa-capfilt-large`."""
    folder.mkdir()
    write_bert_tokenizer(folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words[2748], words[2053] = "yes", "no"
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    randomize(BlipForQuestionAnswering(BlipConfig()), seed=3).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_full_size_models_from_prompts_to_report(tmp_path, monkeypatch):
    """8 GB of files; a few prompts, two steps. The tuned model is the base: every win rate must be one half."""
    spec = importlib.util.spec_from_file_location("evaluate_craft", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_craft", script)
    spec.loader.exec_module(script)
    parse = staticmethod(lambda prompt: (["a red circle", "a robot"], prompt))
    monkeypatch.setattr(CompBenchReward, "parse", parse)

    base = write_sd15(tmp_path / "sd15")
    clip = write_clip(tmp_path / "clip", "official", "L")
    head = write_head(clip / "sac+logos+ava1-l14-linearMSE.pth", 768)
    assert head.exists()
    checkpoints = {
        "hps_v2.1": write_hps(tmp_path / "hps", "official"),
        "aesthetic": clip,
        "geneval": f"{write_detector(tmp_path / 'detector')},{clip}",
        "t2i_compbench": f"{write_blip(tmp_path / 'blip')},{clip}",
    }
    files = []
    for name, row in PROMPTS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        files.append(f"{name}={tmp_path / name}.jsonl")
    arguments = ["--base", str(base), "--tuned", f"same={base}", "--prompts", *files, "--images_per_prompt", "1"]
    arguments += ["--num_inference_steps", "2", "--batch_size", "1", "--rewards", *checkpoints]
    for name, path in checkpoints.items():
        arguments += ["--reward_checkpoint", f"{name}={path}"]
    script.main(script.parse_args([*arguments, "--output_dir", str(tmp_path / "out")]))

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {(row["prompts"], row["model"], row["metric"]): row for row in results["rows"] if row["category"] is None}
    assert len(rows) == 2 * 2 * 3, "each set has two rewards of its own kind and one metric"
    for (prompts, model, metric), row in rows.items():
        assert row["n"] == 1, (prompts, model, metric)
        if model == "same":
            assert row["win_rate"] == 0.5 and row["mean"] == rows[prompts, "sd15", metric]["mean"]
    assert rows["geneval", "same", "geneval"]["mean"] in (0, 1)
    assert 0 <= rows["t2i_compbench", "same", "t2i_compbench"]["mean"] <= 1
    assert results["settings"]["alarm_embedding"] == "clip" and results["alarms"] == []
    assert results["settings"]["models"]["sd15"]["resolution"] == 512
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not comparable with published GenEval" in page and "UniDet left out" in page
