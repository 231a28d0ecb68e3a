# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images a second: scoring in batches against the loops of the official code, side by side in one run.

    python benchmarks/bench_scoring.py                                   # small architectures, about a minute
    python benchmarks/bench_scoring.py --official_packages DIR           # with the real hpsv2 in DIR (pip install --target)
    python benchmarks/bench_scoring.py --full_size --num_prompts 1       # HPS v2.1 at its official size, ViT-H

Weights are random, images are in memory, both sides see the same pairs and must agree. How the official code is called:
`hpsv2.score` takes the images of a prompt, reads the checkpoint again on every call, then encodes image and prompt one
pair at a time; PickScore's README scores the images of one prompt as a batch; the aesthetic predictor and ImageReward
score one image at a time. Without the package these loops run around our own models. Results are appended to
benchmarks/results/bench_scoring.json and shown in bench_scoring.md beside it.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image

from diffusers_craft import RewardSettings, load_reward
from diffusers_craft.scripts import load_rewards


RESULTS = Path(__file__).parent / "results"
PARITY = Path(__file__).parents[1] / "tests" / "parity"  # whose shims make the official packages importable
TOLERANCE = 1e-2  # half precision on a GPU; float32 differs by 1e-6
HPS_FILE = "HPS_v2.1_compressed.pt"
SMALL_HPS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = ("red", "blue", "green", "two", "three", "circle", "star", "square", "robot", "garden", "at night", "in oil")

Scorer = Callable[[], np.ndarray]  # scores all pairs once


@dataclass
class Pairs:
    """A pool as a build makes it: groups of images of one prompt, next to each other."""

    prompts: list[str]
    images: list[Image.Image]

    def groups(self) -> Iterator[tuple[str, list[Image.Image]]]:
        for prompt in dict.fromkeys(self.prompts):
            yield prompt, [image for image, other in zip(self.images, self.prompts) if other == prompt]


@dataclass
class Contest:
    """One reward: two ways to the same numbers."""

    reward: str
    architecture: str
    official_loop: str
    ours: Scorer
    official: Scorer


def make_pairs(num_prompts: int, group_size: int, image_size: int) -> Pairs:
    rng = np.random.default_rng(0)
    prompts = [f"a {' '.join(rng.choice(WORDS, 6))} {i}" for i in range(num_prompts)]
    coarse = rng.integers(0, 256, (num_prompts * group_size, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((image_size, image_size)) for pixels in coarse]
    return Pairs([prompt for prompt in prompts for _ in range(group_size)], images)


def write_hps(folder: Path, config: dict[str, Any]) -> None:
    """A checkpoint of random weights in HPS v2.1's format."""
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in CLIP(**config).state_dict().items()}
    torch.save({"state_dict": state}, folder / HPS_FILE)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def hps_contests(folder: Path, config: dict, title: str, pairs: Pairs, args: argparse.Namespace) -> list[Contest]:
    write_hps(folder, config)
    ours = load_reward("hps_v2.1", str(folder), device=args.device, batch_size=args.batch_size)
    if args.official_packages:
        score, loop = hpsv2_package(folder, config, args), "hpsv2 package"
        official: Scorer = lambda: np.array([s for p, images in pairs.groups() for s in score(images, p)])  # noqa: E731
        return [Contest("hps_v2.1", title, loop, lambda: ours.score(pairs.prompts, pairs.images), official)]
    single = load_reward("hps_v2.1", str(folder), device=args.device, batch_size=1)

    def loop_over_pairs(reload: bool) -> np.ndarray:
        scores = []
        for prompt, images in pairs.groups():
            if reload:
                state = torch.load(folder / HPS_FILE, map_location=args.device, weights_only=True)
                single.model.clip.load_state_dict(state["state_dict"])
            scores += [single.score([prompt], [image])[0] for image in images]
        return np.array(scores)

    return [
        Contest("hps_v2.1", title, loop, lambda: ours.score(pairs.prompts, pairs.images), official)
        for loop, official in (
            ("hpsv2.score's loop: reload a prompt, one pair at a time", lambda: loop_over_pairs(reload=True)),
            ("the same without reloading", lambda: loop_over_pairs(reload=False)),
        )
    ]


def hpsv2_package(folder: Path, config: dict, args: argparse.Namespace) -> Callable[[list, str], list[float]]:
    """`hpsv2.score` on the checkpoint in `folder`, spared the download of CLIP-H's own weights."""
    sys.path.insert(0, str(PARITY))
    from official_packages import import_hpsv2

    package = import_hpsv2(Path(args.official_packages))
    factory = sys.modules["hpsv2.src.open_clip.factory"]
    factory._MODEL_CONFIGS["ViT-H-14"] = config
    create = package.create_model_and_transforms
    package.create_model_and_transforms = lambda name, _, **options: create(name, None, **options)
    package.device = args.device
    path = str(folder / HPS_FILE)
    return lambda images, prompt: [float(s) for s in package.score(images, prompt, cp=path, hps_version="v2.1")]


def embedded_contests(pairs: Pairs, args: argparse.Namespace) -> list[Contest]:
    """PickScore and the aesthetic predictor on the embedded tiny checkpoints."""
    names = ["pickscore", "aesthetic"]
    settings = RewardSettings(checkpoints=dict.fromkeys(names, "tiny"), batch_size=args.batch_size)
    models = load_rewards(names, settings, args.device)

    def a_prompt_at_a_time() -> np.ndarray:
        scores = [models["pickscore"].score([prompt] * len(images), images) for prompt, images in pairs.groups()]
        return np.concatenate(scores)

    def an_image_at_a_time() -> np.ndarray:
        return np.array([models["aesthetic"].score([p], [i])[0] for p, i in zip(pairs.prompts, pairs.images)])

    loops = {
        "pickscore": ("PickScore's README: the images of one prompt as a batch", a_prompt_at_a_time),
        "aesthetic": ("one image at a time", an_image_at_a_time),
    }
    return [
        Contest(name, "embedded tiny", loop, lambda m=models[name]: m.score(pairs.prompts, pairs.images), official)
        for name, (loop, official) in loops.items()
    ]


def seconds(score: Scorer) -> float:
    start = time.perf_counter()
    score()
    return time.perf_counter() - start


def measure(contest: Contest, num_images: int, rounds: int) -> dict[str, Any]:
    """Both ways in turns; the ratio is the median of each round's own."""
    difference = float(np.abs(contest.ours() - contest.official()).max())  # warms up both, too
    if difference > TOLERANCE:
        raise SystemExit(f"{contest.reward}: the two ways differ by {difference:.2g}, so their speeds say nothing")
    times = [(seconds(contest.ours), seconds(contest.official)) for _ in range(rounds)]
    ratios = [official / ours for ours, official in times]
    ours, official = (statistics.median(column) for column in zip(*times))
    return {
        "reward": contest.reward,
        "architecture": contest.architecture,
        "official_loop": contest.official_loop,
        "ours_images_per_second": round(num_images / ours, 2),
        "official_images_per_second": round(num_images / official, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_10_90": [round(float(q), 3) for q in np.quantile(ratios, [0.1, 0.9])],
        "max_difference": difference,
    }


def hardware(device: str) -> str:
    """The processor's name, threads and how busy the machine was."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    load = f", load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    return f"{name}, {torch.get_num_threads()} threads{load}"


def write_results(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Appends to the JSON and renders all of it, newest first."""
    folder.mkdir(exist_ok=True)
    path = folder / "bench_scoring.json"
    results = [*(json.loads(path.read_text()) if path.exists() else []), result]
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    lines = ["# Scoring: ours against the official loops", "", "Written by `benchmarks/bench_scoring.py`.", ""]
    for run in reversed(results):
        lines += [
            f"## {run['date']}",
            "",
            f"{run['hardware']}; torch {run['torch']}; {run['num_images']} images of {run['image_size']} px, "
            f"{run['group_size']} a prompt; batch {run['batch_size']}; median of {run['rounds']} rounds. {run['note']}".rstrip(),
            "",
            "| reward | architecture | official loop | official images/s | ours images/s | ratio [10 %, 90 %] |",
            "|---|---|---|---|---|---|",
        ]
        for row in run["rows"]:
            low, high = row["ratio_10_90"]
            speeds = f"{row['official_images_per_second']:.5g} | {row['ours_images_per_second']:.5g}"
            place = f"{row['reward']} | {row['architecture']} | {row['official_loop']}"
            lines.append(f"| {place} | {speeds} | {row['ratio']:.2f} [{low:.2f}, {high:.2f}] |")
        lines.append("")
    (folder / "bench_scoring.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full_size", action="store_true", help="HPS v2.1 as ViT-H (8 GB of memory) instead.")
    parser.add_argument("--official_packages", default=None, help="Folder with the real hpsv2 package.")
    parser.add_argument("--num_prompts", type=int, default=24)
    parser.add_argument("--group_size", type=int, default=5, help="Images of a prompt.")
    parser.add_argument("--image_size", type=int, default=None, help="Pixels; default: 64, with --full_size 512.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--note", default="", help="What a reader must know, e.g. that the machine was busy.")
    args = parser.parse_args()
    image_size = args.image_size or (512 if args.full_size else 64)
    pairs = make_pairs(args.num_prompts, args.group_size, image_size)
    with tempfile.TemporaryDirectory() as folder:
        config = open_clip.get_model_config("ViT-H-14") if args.full_size else SMALL_HPS
        contests = hps_contests(Path(folder), config, "ViT-H-14" if args.full_size else "small", pairs, args)
        contests += [] if args.full_size else embedded_contests(pairs, args)
        rows = [measure(contest, len(pairs.images), args.rounds) for contest in contests]
    result = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(args.device),
        "torch": torch.__version__,
        "num_images": len(pairs.images),
        "image_size": image_size,
        "group_size": args.group_size,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "note": args.note,
        "rows": rows,
    }
    write_results(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
