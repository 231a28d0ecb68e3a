# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a run keeps when it is killed, when its files are damaged, and when the disk is full; on the tiny world.

    python benchmarks/faults.py --tries 20 --output_dir outputs/faults

Every stage (build, training, evaluation, scoring) runs once undisturbed. Then, `--tries` times each:

- **kill**: SIGKILL at a random moment; the same command again must end with the undisturbed run's files, byte by byte;
- **damage**: one byte of one finished file is flipped, or the file is cut or emptied; the same command again must end with
  the undisturbed result, or with one line that names the file (exit code 2). Another result without a word is a failure;
- **full disk** (needs the right to mount a tmpfs): the run in a file system too small for it must end in one line.

The table of counts goes to `faults.json` and the terminal; what failed is listed with its seed.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "craft"
BUILD = ["build_craft_dataset.py", "--pretrained_model_name_or_path=tiny-sd15", "--prompts=tiny-train"]
BUILD += [
    "--num_prompts=40",
    "--num_refinements=2",
    "--num_inference_steps=4",
    "--rewards",
    "pickscore=1",
    "aesthetic=1",
]
BUILD += ["--filter_rule=none", "--num_samples=10", "--refiner=template"]
TRAIN = ["train_craft_sd15.py", "--pretrained_model_name_or_path=tiny-sd15", "--resolution=64", "--train_batch_size=8"]
TRAIN += ["--gradient_accumulation_steps=1", "--max_train_steps=12", "--checkpointing_steps=3", "--use_ema"]
TRAIN += ["--report_to=none", "--resume_from_checkpoint=latest"]
EVALUATE = ["evaluate_craft.py", "--base", "base=tiny-sd15", "--prompts", "tiny-heldout", "--num_prompts=30"]
EVALUATE += ["--rewards", "pickscore", "--num_inference_steps=4"]
SCORE = ["score_images.py", "--rewards", "pickscore", "aesthetic"]
SCORE += ["--reward_checkpoint", "pickscore=tiny", "--reward_checkpoint", "aesthetic=tiny"]
# What says when and where, not what came out.
TIMES = ("craft_build.json", "craft_run.json", "craft_evaluate.json", "score_images.json", "report.html")


def commands(work: Path) -> dict[str, list[str]]:
    """Stage to its command without `--output_dir`; later stages read the undisturbed build."""
    dataset = work / "build-whole"
    return {
        "build": BUILD,
        "train": [*TRAIN, f"--dataset_name={dataset}"],
        "evaluate": [*EVALUATE, "--tuned", f"tuned={work / 'train-whole'}"],
        "score": [*SCORE, f"--images={dataset / 'dataset'}"],
    }


def start(command: list[str], output: Path, cache: Path) -> subprocess.Popen:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    extra = [f"--cache_dir={cache}"] if command[0].startswith("train") else []
    script = [sys.executable, str(EXAMPLES / command[0]), *command[1:], f"--output_dir={output}", *extra]
    return subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(command: list[str], output: Path, cache: Path) -> tuple[int, str]:
    """Exit code, and the last line of errors."""
    process = start(command, output, cache)
    _, errors = process.communicate(timeout=600)
    return process.returncode, (errors.strip().splitlines() or [""])[-1]


def result(folder: Path) -> dict[str, str]:
    """The hash of every file that a user takes away from a run."""
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    kept = (
        path for path in kept if not any(part.startswith((".", "checkpoint-", "logs")) for part in path.parts[-3:])
    )
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def kill(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Kills a run at a random moment of its life and runs it again."""
    process = start(command, folder / "out", folder / "cache")
    time.sleep(rng.uniform(0.1, 1.0) * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, line = finish(command, folder / "out", folder / "cache")
    if code:
        return f"failed: exit code {code}: {line}"
    return "equal" if result(folder / "out") == result(whole) else "another result"


def damage(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Damages one file of a finished run and runs the command again."""
    shutil.copytree(whole, folder / "out", symlinks=True)
    files = [path for path in sorted((folder / "out").rglob("*")) if path.is_file() and path.stat().st_size]
    path = rng.choice(files)
    data, kind = bytearray(path.read_bytes()), rng.choice(["flipped", "cut", "emptied"])
    if kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if kind == "flipped" else data[: len(data) // 2 if kind == "cut" else 0])
    code, line = finish(command, folder / "out", folder / "cache")
    place = f"{kind} {path.relative_to(folder / 'out')}"
    if code == 2:
        return (
            "one line"
            if path.name in line or path.parent.name in line
            else f"one line without the file: {place}: {line}"
        )
    if code:
        return f"failed: {place}: exit code {code}: {line}"
    found, expected = result(folder / "out"), result(whole)
    changed = [name for name in expected if found.get(name) != expected[name]]
    if not changed:
        return "equal"
    own = str(path.relative_to(folder / "out"))
    return f"damage stays: {place}" if changed == [own] else f"another result: {place}: {changed[:3]}"


def full_disk(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Runs in a file system that has a random part of the space needed."""
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    small = folder / "small"
    small.mkdir()
    options = f"size={max(1, int(size * rng.uniform(0.1, 0.9)))}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", small], capture_output=True).returncode:
        return "not tried: no right to mount"
    try:
        code, line = finish(command, small / "out", folder / "cache")
        said = "space" in line or "full" in line or "free" in line
        return "one line" if code == 2 and said else f"exit code {code}: {line}"
    finally:
        subprocess.run(["umount", "-l", small], check=False)


FAULTS = {"kill": kill, "damage": damage, "full disk": full_disk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="Of each fault, per stage.")
    parser.add_argument("--stages", nargs="+", default=["build", "train", "evaluate", "score"])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/faults"))
    args = parser.parse_args()
    work = args.output_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for stage, command in commands(work).items():
        whole, begun = work / f"{stage}-whole", time.monotonic()
        if not result(whole):
            code, line = finish(command, whole, work / "cache")
            if code:
                raise SystemExit(f"{stage}: the undisturbed run failed with exit code {code}: {line}")
        seconds = max(time.monotonic() - begun, 5.0)
        if stage not in args.stages:
            continue
        for fault in args.faults:
            found: Counter[str] = Counter()
            for number in tqdm(range(args.tries), desc=f"{stage}: {fault}"):
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    rng = random.Random(f"{args.seed} {stage} {fault} {number}")
                    outcome = FAULTS[fault](command, whole, seconds, Path(folder), rng)
                if ": " in outcome or outcome == "another result":
                    tqdm.write(f"{stage}, {fault}, try {number}: {outcome}")
                found[outcome.split(":")[0]] += 1
            counts.setdefault(stage, {})[fault] = dict(found)
            (work / "faults.json").write_text(
                json.dumps({"tries": args.tries, "seed": args.seed, "counts": counts}, indent=2)
            )
    for stage, faults in counts.items():
        for fault, found in faults.items():
            print(f"{stage:10} {fault:10} " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.items())))


if __name__ == "__main__":
    main()
