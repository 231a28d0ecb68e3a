# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Trains everything that diffusers-craft embeds from nothing, and installs it into the package.

    python scripts/rebuild_tiny_models.py vae sd15 sdxl install rewards [--work_dir outputs/tiny]

VAE, text encoder and UNet take one to two hours for each pipeline on two CPU cores, the rewards take minutes. Parts that
are finished are kept: call it again to go on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from rebuild_tiny.unet import PIPELINES, cycle_folder, train_pipeline
from rebuild_tiny.vae import train_vae
from safetensors.torch import load_file, save_file

from diffusers_craft.tiny import MODELS, WEIGHTS


PARTS = ("vae", "sd15", "sdxl", "install", "rewards")


def install(work_dir: Path) -> None:
    """Copies the newest cycle of each pipeline into the package, in half precision; both share one file of VAE weights."""
    for kind, pipeline_class in PIPELINES.items():
        cycles = sorted((work_dir / f"tiny-{kind}").glob("cycle-*"), key=lambda path: int(path.name.split("-")[1]))
        if not cycles:
            continue
        assert cycles[-1] == cycle_folder(work_dir, kind, len(cycles) - 1)
        options = {"safety_checker": None} if kind == "sd15" else {}
        pipeline = pipeline_class.from_pretrained(cycles[-1], torch_dtype=torch.float16, **options)
        target = WEIGHTS / f"tiny-{kind}"
        pipeline.save_pretrained(target)
        for config in (target / "model_index.json", *target.glob("*/config.json")):
            clean_config(config)
        for tokenizer in target.glob("*/tokenizer.json"):
            write_tokenizer_files(tokenizer)
        for text_encoder in target.glob("text_encoder*/model.safetensors"):
            name_text_tensors(text_encoder)
    first, second = (WEIGHTS / name / "vae" / "diffusion_pytorch_model.safetensors" for name in MODELS)
    if first.is_file() and second.is_file():
        second.unlink()
        second.symlink_to(Path("../..") / first.relative_to(WEIGHTS))


def write_tokenizer_files(path: Path) -> None:
    """Writes what transformers 4 reads beside a `tokenizer.json`: `vocab.json` and `merges.txt`."""
    model = json.loads(path.read_text())["model"]
    path.with_name("vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    path.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def name_text_tensors(path: Path) -> None:
    """Names a text encoder's tensors `text_model.*`, as published checkpoints do.

    transformers 5 reads these names too, but saves a `CLIPTextModel` without the prefix; transformers 4 would then start
    from random weights, with no more than a warning.
    """
    tensors = load_file(path)
    prefixed = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in tensors.items()
    }
    if prefixed.keys() != tensors.keys():
        save_file(prefixed, path, metadata={"format": "pt"})


def clean_config(path: Path) -> None:
    """Drops the path that weights were trained in, and asks transformers for the precision that diffusers takes."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if config.get("dtype") == "float16":  # transformers 5 would compute in half precision, diffusers in single
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/tiny"))
    parser.add_argument("--vae_steps", type=int, default=5300)
    parser.add_argument("--steps", type=int, nargs="+", default=[3000, 2200, 7000], help="Of the UNet, a cycle each.")
    parser.add_argument("--num_pictures", type=int, default=48000)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    for part in (part for part in PARTS if part in args.parts):
        if part == "vae":
            train_vae(args.work_dir, args.vae_steps, args.seed)
        elif part == "install":
            install(args.work_dir)
        elif part == "rewards":
            subprocess.run([sys.executable, "-m", "rebuild_tiny.rewards"], check=True, cwd=Path(__file__).parent)
        else:
            train_pipeline(part, args.work_dir, args.steps, args.seed, args.num_pictures)


if __name__ == "__main__":
    main()
