# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT, its siblings and the baselines on the tiny world: the same base, candidates, prompts and judge.

    python benchmarks/alignment_tiny.py --work outputs/alignment                # every cell that is missing
    python benchmarks/alignment_tiny_tables.py --work outputs/alignment         # tables and plot of what is there

A cell is one method, seed and budget; it runs in a process of its own and leaves one JSON file, so that a killed run goes
on where it was. Three budgets: `passes` gives every method as many images with a gradient (images x steps), `compute` as
many UNet forward passes, counting one image forward as 1, backward as 2, references, inversions, roll-outs and generation
included, `seconds` as much processor time of its training loop as CRAFT took for its steps with that seed: the clock of a
core that does nothing else, whatever the machine does beside. Decoding and rewards of online methods are in the seconds,
not in the passes.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from alignment_methods import FORWARDS, METHODS, MODEL, REWARDS, STEPS, Method
from diffusers import UNet2DConditionModel

from diffusers_craft import Evaluation, GenerationSettings, RewardSettings, TrainingRun
from diffusers_craft.scripts import ExactReward, atomic_write_json, load_rewards


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BUDGETS = ["compute", "passes", "seconds"]


@dataclass
class Meter:
    """Counts what the UNets of this process do, and how long the training loop takes."""

    images: int = 0  # with a gradient
    forwards: int = 0  # image passes without one, and those
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: int = 0
    limit: int | None = None  # of cost
    limit_seconds: float | None = None  # of processor time

    @property
    def cost(self) -> int:
        return self.forwards + 2 * self.images

    def spent(self) -> bool:
        """Whether a limit is reached."""
        out_of_cost = self.limit is not None and self.cost >= self.limit
        return out_of_cost or (self.limit_seconds is not None and self.cpu_seconds >= self.limit_seconds)

    def install(self) -> None:
        """Hooks every UNet's forward pass and the training loop."""

        def count(module: torch.nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(module, UNet2DConditionModel):
                self.forwards += len(inputs[0])
                self.images += len(inputs[0]) if torch.is_grad_enabled() and module.training else 0

        torch.nn.modules.module.register_module_forward_hook(count)
        steps = TrainingRun.steps

        def timed(run: TrainingRun) -> Iterator[int]:
            start, cpu_start = time.perf_counter(), time.process_time() - self.cpu_seconds
            for step in steps(run):
                yield step
                self.steps += 1
                self.cpu_seconds = time.process_time() - cpu_start
                if self.spent():
                    break
            self.seconds += time.perf_counter() - start

        TrainingRun.steps = timed


def run_script(path: Path, flags: Sequence[str]) -> None:
    """Runs an example's main in this process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(script.parse_args([str(flag) for flag in flags]))


def build(folder: Path, seed: int, flags: Sequence[str] = ()) -> None:
    """Candidates, scores and the dataset of 100, if they are not there."""
    if (folder / "craft_build.json").is_file():
        return
    rewards = [f"{name}={weight}" for name, weight in REWARDS.items()]
    command = ["--pretrained_model_name_or_path", MODEL, "--prompts", "tiny-train", "--num_prompts", 600]
    command += ["--refiner", "template", "--num_refinements", 4, "--num_inference_steps", 12, "--guidance_scale", 3]
    command += ["--generation_batch_size", 32, "--rewards", *rewards, "--num_samples", 100]
    command += ["--seed", seed, "--output_dir", folder, *flags]
    run_script(EXAMPLES / "craft" / "build_craft_dataset.py", command)


def dataset_folder(work: Path, seed: int, method: Method) -> Path:
    """The build of a seed; another selection from it shares candidates and scores by links."""
    main = work / f"seed-{seed}" / "build"
    build(main, seed)
    if not method.build:
        return main
    name = "-".join(flag.removeprefix("--") for flag in method.build)
    folder = work / f"seed-{seed}" / f"build-{name}"
    folder.mkdir(exist_ok=True)
    for stage in ("refined", "candidates", "scores"):
        if not (folder / stage).exists():
            os.symlink(main.resolve() / stage, folder / stage)
    build(folder, seed, method.build)
    return folder


def train(work: Path, name: str, seed: int, budget: str, rate: float, meter: Meter) -> Path:
    """Trains one cell; returns the pipeline's folder."""
    method, model = METHODS[name], MODEL
    output = work / f"seed-{seed}" / f"{budget}-{name}-{rate:g}"
    if method.start:
        meter.limit = FORWARDS // 2
        run_method(work, METHODS[method.start], seed, rate, 10 * STEPS, model, output / "start")
        model = output / "start"
    measures_seconds = budget == "seconds" and name == "craft"
    steps = STEPS if budget == "passes" or measures_seconds else 10 * STEPS
    meter.limit = FORWARDS if budget == "compute" else None
    if budget == "seconds" and not measures_seconds:
        meter.limit_seconds = craft_seconds(work, seed)
    run_method(work, method, seed, rate, steps, model, output)
    return output


def run_method(
    work: Path, method: Method, seed: int, rate: float, steps: int, model: str | Path, output: Path
) -> None:
    """The method's script, from a model to the pipeline in `output`."""
    flags = ["--pretrained_model_name_or_path", model, "--dataset_name", dataset_folder(work, seed, method)]
    flags += ["--resolution", 64, "--train_batch_size", method.batch_size, "--gradient_accumulation_steps", 1]
    flags += ["--max_train_steps", steps, "--learning_rate", rate, "--checkpointing_steps", 10**6]
    flags += ["--seed", seed, "--output_dir", output, "--report_to", "none", *method.flags]
    run_script(EXAMPLES / method.script, flags)


def craft_seconds(work: Path, seed: int) -> float:
    """Processor seconds of CRAFT's steps with this seed."""
    path = cell_path(work, "craft", seed, "seconds", METHODS["craft"].learning_rate)
    if not path.is_file():
        raise SystemExit(f"error: --budgets seconds: expected CRAFT's own cell first, found no {path}")
    return json.loads(path.read_text())["cpu_seconds"]


def evaluate(model: str, seed: int, num_prompts: int) -> dict[str, list[float | None]]:
    """Metric to scores on held-out captions; a prompt's noise is the same for all models of a seed."""
    judges = {"exact": ExactReward(), **load_rewards(list(REWARDS), RewardSettings(), "cpu", MODEL)}
    settings = GenerationSettings(num_inference_steps=12, guidance_scale=2.0, batch_size=50)
    options = {"settings": settings, "num_prompts": num_prompts, "dtype": torch.float32, "seed": seed}
    results = Evaluation(f"model={model}", (), "tiny-heldout", [], reward_models=judges, **options).run()
    scores = results.scores["tiny-heldout"]["model"]
    return {name: [None if np.isnan(v) else round(float(v), 6) for v in scores[name].ravel()] for name in judges}


def run_cell(work: Path, name: str, seed: int, budget: str, rate: float, num_prompts: int) -> None:
    """One cell from data to scores; `base` is only evaluated."""
    meter, result = Meter(), {"method": name, "seed": seed, "budget": budget, "learning_rate": rate}
    folder = MODEL
    if name != "base":
        dataset_folder(work, seed, METHODS[name])  # before the meter counts
        meter.install()
        folder = train(work, name, seed, budget, rate, meter)
        result |= {key: value for key, value in asdict(meter).items() if not key.startswith("limit")}
        result |= {"cost": meter.cost, "batch_size": METHODS[name].batch_size}
        result["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    result |= {"date": time.strftime("%Y-%m-%d"), "scores": evaluate(str(folder), seed, num_prompts)}
    atomic_write_json(cell_path(work, name, seed, budget, rate), result)
    print(name, seed, budget, {k: round(float(np.mean(v)), 4) for k, v in result["scores"].items()}, flush=True)


def cell_path(work: Path, name: str, seed: int, budget: str, rate: float) -> Path:
    return work / "cells" / f"{budget}-{name}-seed{seed}-{rate:g}.json"


def missing_cells(args: argparse.Namespace) -> Iterator[tuple[str, int, str, float]]:
    """What is not there yet, seed by seed."""
    for seed in args.seeds:
        cells = [("base", "none", 0.0)]
        for budget in args.budgets:
            for name in args.methods or [n for n, m in METHODS.items() if m.part in args.parts]:
                rates = args.learning_rates or [METHODS[name].learning_rate]
                cells += [(name, budget, rate) for rate in rates]
        for name, budget, rate in cells:
            if not cell_path(args.work, name, seed, budget, rate).is_file():
                yield name, seed, budget, rate


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/alignment"), help="Builds, models and cells.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--parts", nargs="+", default=["methods", "selection", "rewards", "betas", "variants"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="Only these.")
    parser.add_argument("--learning_rates", type=float, nargs="+", help="Instead of each method's own.")
    parser.add_argument("--num_prompts", type=int, default=300)
    parser.add_argument("--max_cells", type=int, help="Stop after this many.")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)  # name, seed, budget, rate: the child's own
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.cell:
        name, seed, budget, rate = args.cell
        run_cell(args.work, name, int(seed), budget, float(rate), args.num_prompts)
        return
    cells = list(missing_cells(args))[: args.max_cells]
    for index, cell in enumerate(cells, start=1):
        print(f"[{index}/{len(cells)}]", *cell, flush=True)
        command = [sys.executable, __file__, "--work", args.work, "--num_prompts", args.num_prompts, "--cell", *cell]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        print(result.stdout.splitlines()[-1] if result.returncode == 0 else result.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main(parse_args())
