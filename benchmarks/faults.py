# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a run keeps when it is killed, when its files are damaged, and when the disk is full; on the tiny world.

    python benchmarks/faults.py --tries 20 --output_dir outputs/faults

Every stage (build, training, evaluation, scoring) runs once undisturbed. Then, `--tries` times each:

- **kill**: SIGKILL at a random moment after the output folder was made (a run that had ended by then counts apart); the same
  command again must end with the undisturbed run's files, byte by byte;
- **damage**: one bit of one finished file (of training: of the result, the newest checkpoint or the encoding cache) is flipped,
  or the file is cut or emptied; the same command again must end with the undisturbed result, or with one line that names the
  file (exit code 2). "Damage stays" where that file alone differs at the end: the command had no need to read it. Another
  result without a word is a failure;
- **full disk** (needs the right to mount a tmpfs): in a file system too small for it the run must end in one line, and
  once there is space the same command must end with the undisturbed run's files;
- **disk fills up**: the same, but another file takes the space once a run has written its first shard or checkpoint.

The table of counts goes to `faults.json` and the terminal; what failed is listed with its seed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
# What a stage writes first.
BEGUN = {
    "build": "candidates/part-*",
    "train": "checkpoint-*",
    "evaluate": "images/**/part-*",
    "score": "scores/**/part-*",
}
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


def start(command: list[str], output: Path, cache: Path, errors: Any = subprocess.DEVNULL) -> subprocess.Popen:
    """A run on one thread, without the network; training has an encoding cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    extra = [f"--cache_dir={cache}"] if command[0].startswith("train") else []
    script = [sys.executable, str(EXAMPLES / command[0]), *command[1:], f"--output_dir={output}", *extra]
    return subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=errors, text=True)


def finish(command: list[str], output: Path, cache: Path) -> tuple[int, str]:
    """Exit code, and the last line of errors."""
    with tempfile.TemporaryFile("w+") as errors:
        return end(start(command, output, cache, errors), errors)


def end(process: subprocess.Popen, errors: IO[str]) -> tuple[int, str]:
    """As `finish`, of a run that was started."""
    code = process.wait(timeout=600)
    errors.seek(0)
    return code, (errors.read().strip().splitlines() or [""])[-1]


def wait_for(process: subprocess.Popen, folder: Path, pattern: str) -> None:
    """Until a run has made it, or has ended."""
    while process.poll() is None and not any(folder.glob(pattern)):
        time.sleep(0.005)


def result(folder: Path) -> dict[str, str]:
    """The hash of every file that a user takes away from a run."""
    passing = (".", "checkpoint-", "logs")
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    kept = (path for path in kept if not any(part.startswith(passing) for part in path.relative_to(folder).parts))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def again(command: list[str], whole: Path, output: Path, cache: Path) -> str:
    """Runs a command again that was cut off, and compares what it leaves."""
    code, line = finish(command, output, cache)
    if code:
        return f"failed: again: exit code {code}: {line}"
    return "equal" if result(output) == result(whole) else "another result"


def kill(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Kills a run at a random moment of its life, without the imports, and runs it again."""
    begun = time.monotonic()
    process = start(command, folder / "out", folder / "cache")
    wait_for(process, folder, "out")
    time.sleep(rng.random() * max(0.0, seconds - (time.monotonic() - begun)))
    if process.poll() is not None:
        return "had ended"
    process.kill()
    process.wait()
    return again(command, whole, folder / "out", folder / "cache")


def damage(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Damages one file of a finished run, or of its cache, and runs the command again."""
    shutil.copytree(whole, folder / "out", symlinks=True)
    places = [folder / "out"]
    if "train" in whole.name:
        places.append(shutil.copytree(whole.parent / "cache", folder / "cache"))
    *old, _ = sorted((folder / "out").glob("checkpoint-*"), key=lambda path: int(path.name[11:])) or [None]
    files = [path for place in places for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size]
    path = rng.choice([path for path in files if not {*old, folder / "out" / "logs"} & set(path.parents)])
    data, kind = bytearray(path.read_bytes()), rng.choice(["flipped", "cut", "emptied"])
    if kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if kind == "flipped" else data[: len(data) // 2 if kind == "cut" else 0])
    code, line = finish(command, folder / "out", folder / "cache")
    place = f"{kind} {path.relative_to(folder)}"
    if code == 2:
        names = {path.name, *(part for part in path.parts if part.startswith("checkpoint-"))}
        return "one line" if any(name in line for name in names) else f"one line without the file: {place}: {line}"
    if code:
        return f"failed: {place}: exit code {code}: {line}"
    found, expected = result(folder / "out"), result(whole)
    changed = [name for name in expected if found.get(name) != expected[name]]
    if [f"out/{name}" for name in changed] == [str(path.relative_to(folder))]:
        return f"damage stays: {place}"
    return f"another result: {place}: {changed[:3]}" if changed else "equal"


@contextlib.contextmanager
def file_system(folder: Path, whole: Path, share: float) -> Iterator[Path | None]:
    """A file system for a share of what a run leaves; `None` without the right to mount one."""
    place, sizes = folder / "small", [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
    place.mkdir()
    size = f"size={int(share * sum(sizes))}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", place], capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def full_disk(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Runs in a file system that has a random part of the space needed, and again in one that has enough."""
    with file_system(folder, whole, rng.uniform(0.1, 0.9)) as small:
        if small is None:
            return "not tried: no right to mount"
        code, line = finish(command, small / "out", folder / "cache")
        if not says_full(code, line):
            return f"failed: exit code {code}: {line}"
        subprocess.run(["mount", "-o", "remount,size=1g", small], check=True)
        return f"one line, then {again(command, whole, small / 'out', folder / 'cache')}"


def disk_fills_up(command: list[str], whole: Path, seconds: float, folder: Path, rng: random.Random) -> str:
    """Takes the space away from a run that has begun to write, gives it back and runs it again."""
    with file_system(folder, whole, 10) as place, tempfile.TemporaryFile("w+") as errors:
        if place is None:
            return "not tried: no right to mount"
        process = start(command, place / "out", folder / "cache", errors)
        wait_for(process, place / "out", BEGUN[whole.name.removesuffix("-whole")])
        filler = place / "filler"
        while process.poll() is None and (free := shutil.disk_usage(place).free):
            with filler.open("ab") as file, contextlib.suppress(OSError):  # the run was faster
                os.posix_fallocate(file.fileno(), file.tell(), free)
        code, line = end(process, errors)
        if not says_full(code, line):
            return f"failed: exit code {code}: {line}" if code else "had ended"
        filler.unlink()
        return f"one line, then {again(command, whole, place / 'out', folder / 'cache')}"


def says_full(code: int, line: str) -> bool:
    """Whether a run ended in the one line, of a disk that is full or of one with too little space to begin."""
    return code == 2 and (line.startswith("error: disk full") or " free for " in line)


FAULTS = {"kill": kill, "damage": damage, "full disk": full_disk, "disk fills up": disk_fills_up}


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
                if ": " in outcome or outcome.endswith("another result"):
                    tqdm.write(f"{stage}, {fault}, try {number}: {outcome}")
                found[outcome.split(":")[0]] += 1
            counts.setdefault(stage, {})[fault] = dict(found)
            record = {"tries": args.tries, "seed": args.seed, "counts": counts}
            (work / "faults.json").write_text(json.dumps(record, indent=2))
    for stage, faults in counts.items():
        for fault, found in faults.items():
            print(f"{stage:10} {fault:15} " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.items())))


if __name__ == "__main__":
    main()
