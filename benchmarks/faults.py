# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a run keeps when it is killed, when its files are damaged, and when the disk is full; on the tiny world.

    python benchmarks/faults.py --tries 20 --output_dir outputs/faults

Every stage (build, training, evaluation, scoring) runs once undisturbed. Then, `--tries` times each:

- **kill**: SIGKILL at a random moment; the same command again must end with the undisturbed run's files, byte by byte;
- **damage**: one bit of one finished file (of training's encoding cache, too) is flipped, or the file is cut or emptied; the
  same command again must end with the undisturbed result, or with one line that names the file (exit code 2). Another result
  without a word is a failure;
- **full disk** (needs the right to mount a tmpfs): in a file system too small for it the run must end in one line, and
  once there is space the same command must end with the undisturbed run's files.

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
BUILD = (
    "build_craft_dataset.py --pretrained_model_name_or_path tiny-sd15 --prompts tiny-train --num_prompts 40"
    " --refiner template --num_refinements 2 --num_inference_steps 4 --rewards pickscore=1 aesthetic=1"
    " --filter_rule none --num_samples 10"
)
TRAIN = (
    "train_craft_sd15.py --pretrained_model_name_or_path tiny-sd15 --resolution 64 --train_batch_size 8"
    " --gradient_accumulation_steps 1 --max_train_steps 12 --checkpointing_steps 3 --use_ema --report_to none"
    " --resume_from_checkpoint latest"
)
EVALUATE = (
    "evaluate_craft.py --base base=tiny-sd15 --prompts tiny-heldout --num_prompts 30 --rewards pickscore"
    " --num_inference_steps 4"
)
SCORE = "score_images.py --rewards pickscore aesthetic --reward_checkpoint pickscore=tiny --reward_checkpoint aesthetic=tiny"
# What says when and where, not what came out.
TIMES = ("craft_build.json", "craft_run.json", "craft_evaluate.json", "score_images.json", "report.html")


def commands(work: Path) -> dict[str, list[str]]:
    """Stage to its command without `--output_dir`; later stages read the undisturbed build."""
    dataset = work / "build-whole"
    return {
        "build": BUILD.split(),
        "train": [*TRAIN.split(), f"--dataset_name={dataset}"],
        "evaluate": [*EVALUATE.split(), "--tuned", f"tuned={work / 'train-whole'}"],
        "score": [*SCORE.split(), f"--images={dataset / 'dataset'}"],
    }


def start(command: list[str], output: Path, cache: Path) -> subprocess.Popen:
    """A run on one thread, without the network; training has an encoding cache of its own."""
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
    passing = (".", "checkpoint-", "logs")
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    kept = (path for path in kept if not any(part.startswith(passing) for part in path.relative_to(folder).parts))
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
    """Damages one file of a finished run, or of its cache, and runs the command again."""
    shutil.copytree(whole, folder / "out", symlinks=True)
    shutil.copytree(whole.parent / "cache", folder / "cache", dirs_exist_ok=True)
    places = (folder / "out", folder / "cache") if "train" in whole.name else (folder / "out",)
    files = (path for place in places for path in sorted(place.rglob("*")))
    path = rng.choice([path for path in files if path.is_file() and path.stat().st_size])
    data, kind = bytearray(path.read_bytes()), rng.choice(["flipped", "cut", "emptied"])
    if kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if kind == "flipped" else data[: len(data) // 2 if kind == "cut" else 0])
    code, line = finish(command, folder / "out", folder / "cache")
    place = f"{kind} {path.relative_to(folder)}"
    if code == 2:
        is_named = path.name in line or path.parent.name in line
        return "one line" if is_named else f"one line without the file: {place}: {line}"
    if code:
        return f"failed: {place}: exit code {code}: {line}"
    found, expected = result(folder / "out"), result(whole)
    changed = [name for name in expected if found.get(name) != expected[name]]
    if not changed:
        return "equal"
    return (
        f"damage stays: {place}"
        if [f"out/{name}" for name in changed] == [str(path.relative_to(folder))]
        else f"another result: {place}: {changed[:3]}"
    )


def full_disk(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Runs in a file system that has a random part of the space needed, and again in one that has enough."""
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    options = f"size={max(1, int(size * rng.uniform(0.1, 0.9)))}"
    if subprocess.run([*mount, options, "none", small], capture_output=True).returncode:
        return "not tried: no right to mount"
    try:
        code, line = finish(command, small / "out", folder / "cache")
        said = "space" in line or "full" in line or "free" in line
        if code != 2 or not said:
            return f"failed: exit code {code}: {line}"
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", small], check=True)
        code, line = finish(command, small / "out", folder / "cache")
        if code:
            return f"failed: with space: exit code {code}: {line}"
        return "one line, then equal" if result(small / "out") == result(whole) else "another result"
    finally:
        subprocess.run(["umount", "-l", small], check=False)


FAULTS = {"kill": kill, "damage": damage, "full disk": full_disk}


def undisturbed(command: list[str], whole: Path) -> float:
    """Runs a stage once, unless it was run before; its seconds."""
    seconds = whole.parent / f"{whole.name}.seconds"
    if not seconds.exists():
        shutil.rmtree(whole, ignore_errors=True)
        begun = time.monotonic()
        code, line = finish(command, whole, whole.parent / "cache")
        if code:
            raise SystemExit(f"{whole.name}: the undisturbed run failed with exit code {code}: {line}")
        seconds.write_text(str(time.monotonic() - begun))
    return float(seconds.read_text())


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
        whole = work / f"{stage}-whole"
        seconds = undisturbed(command, whole)
        for fault in args.faults if stage in args.stages else ():
            found: Counter[str] = Counter()
            for number in tqdm(range(args.tries), desc=f"{stage}: {fault}"):
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    rng = random.Random(f"{args.seed} {stage} {fault} {number}")
                    outcome = FAULTS[fault](command, whole, seconds, Path(folder), rng)
                if ": " in outcome or outcome == "another result":
                    tqdm.write(f"{stage}, {fault}, try {number}: {outcome}")
                found[outcome.split(":")[0]] += 1
            counts.setdefault(stage, {})[fault] = dict(found)
            record = {"tries": args.tries, "seed": args.seed, "counts": counts}
            (work / "faults.json").write_text(json.dumps(record, indent=2))
    for stage, faults in counts.items():
        for fault, found in faults.items():
            print(f"{stage:10} {fault:10} " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.items())))


if __name__ == "__main__":
    main()
