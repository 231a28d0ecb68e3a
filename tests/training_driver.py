# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Runs the training scripts on random-weight pipelines and reads what they left; the fixtures are in conftest.py."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file


ROOT = Path(__file__).parent.parent
FIXED = ["--resolution=64", "--report_to=none", "--learning_rate=1e-3"]


def load_script(family: str) -> ModuleType:
    return load_example(f"train_craft_{family}")


def load_example(name: str) -> ModuleType:
    path = ROOT / "examples" / "craft" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def weights(folder: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_json(folder: Path) -> dict:
    return json.loads((folder / "craft_run.json").read_text())


def losses(folder: Path) -> list[float]:
    return [entry["train_loss"] for entry in run_json(folder)["loss_history"]]


def environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
