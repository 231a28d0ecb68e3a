# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Runs build_craft_dataset.py with rewards that need no weights, in processes that end as `kill -9` would end them.

As a program it reads rounds of runs as JSON from stdin and prints their exit codes. A round's runs go side by side, each
in a forked process of its own, which saves the imports: `{"args": [...], "kill_at": "", "environment": {}}`.
"""

import importlib.util
import json
import os
import signal
import sys
import traceback
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


def fork_run(script: ModuleType, args: list[str], kill_at_file: str, environment: dict[str, str]) -> int:
    """Starts a run in a forked process and returns its process id; the run's stdout goes to stderr."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(2, 1)
        os.environ.update(environment)
        kill_at(kill_at_file)
        script.main(script.parse_args(args))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    # Imported once, before the processes part.
    from diffusers_craft import CRAFTDatasetBuilder, register_reward  # noqa: F401

    register_brightness_rewards(register_reward)
    script = load_script()
    codes = []
    for runs in json.load(sys.stdin):
        started = [fork_run(script, run["args"], run["kill_at"], run["environment"]) for run in runs]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started])
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
