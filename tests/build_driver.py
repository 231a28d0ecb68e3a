# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Runs build_craft_dataset.py with rewards that need no weights; as a program, may kill itself at a chosen file.

python build_driver.py KILL_AT ARGUMENTS...   SIGKILL at the moment when a file or folder KILL_AT would get its name
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image


REWARDS = ("hps_v2.1", "pickscore", "aesthetic")
SCRIPT = Path(__file__).parents[1] / "examples" / "craft" / "build_craft_dataset.py"


class BrightnessReward:
    """Brightness of two thirds of the image, plus a thousandth of the prompt's length: cheap and deterministic."""

    def __init__(self, name: str, checkpoint: str | None = None, **_: object):
        self.name = name
        self.source = {"checkpoint": checkpoint or "brightness"}
        self.prompts: list[str] = []
        self.num_images = 0

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        self.prompts += prompts
        self.num_images += len(images)
        left_out = REWARDS.index(self.name)
        thirds = [np.array_split(np.asarray(image.convert("L")) / 255, 3) for image in images]
        means = [np.concatenate(parts[:left_out] + parts[left_out + 1 :]).mean() for parts in thirds]
        return np.array(means, np.float32) + np.array([len(prompt) for prompt in prompts], np.float32) / 1000


def register_brightness_rewards(register: Callable[[str, Callable], None]) -> None:
    for name in REWARDS:
        register(name, lambda name=name, **options: BrightnessReward(name, **options))


def load_script(path: Path = SCRIPT) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kill_at(suffix: str) -> None:
    """Ends this process as `kill -9` does, just before a file or folder ending in `suffix` gets its name."""
    for function in ("replace", "rename"):
        rename = getattr(os, function)

        def patched(source: str, target: str, *args: object, rename: Callable = rename, **options: object) -> None:
            if suffix and str(target).endswith(suffix):
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target, *args, **options)

        setattr(os, function, patched)


if __name__ == "__main__":
    from diffusers_craft import register_reward, run_script

    register_brightness_rewards(register_reward)
    script = load_script()
    kill_at(sys.argv[1])
    run_script(script.main, script.parse_args(sys.argv[2:]))
