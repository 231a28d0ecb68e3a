# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Runs the entries of a record, one after another in one process or on two, and writes down what they left."""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .describing import ROOT, describe_folder, without_places
from .jobs import PARTS, Job, chosen_jobs


PROGRAM = ROOT / "scripts" / "record_behaviour.py"
LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "peft", "numpy", "pillow", "pyarrow")


class Record:
    """The JSON file of a record, written whole after every entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = json.loads(path.read_text()) if path.is_file() else {"about": about()}
        self.results = self.content.setdefault("results", {})
        self.seconds = self.content.setdefault("seconds", {})

    def add(self, key: str, result: dict, seconds: float) -> None:
        self.results[key], self.seconds[key] = result, round(seconds, 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1))
        temporary.replace(self.path)

    def is_done(self, key: str) -> bool:
        return key in self.results and "error" not in self.results[key]


def about() -> dict[str, Any]:
    """What explains differences that no refactoring made."""
    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    found |= {"python": platform.python_version(), "commit": git.stdout.strip() or None}
    import torch

    return found | {"cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def prepare_process(work: Path) -> None:
    """Offline, one thread, caches of its own, and this checkout's package, for this process and those that it starts."""
    sources = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= offline | threads | {"HF_HOME": str(work / "huggingface"), "PYTHONPATH": sources}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
    os.environ |= {"MPLCONFIGDIR": str(work / "matplotlib")}
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    torch.set_num_threads(1)


@functools.cache
def load_script(name: str) -> ModuleType:
    path = ROOT / "examples" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = script  # where dataclasses look for their module
    spec.loader.exec_module(script)
    return script


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[io.StringIO]:
    """Sends stderr, whoever writes it, to a file; yields what Python prints."""
    log.parent.mkdir(parents=True, exist_ok=True)
    printed = io.StringIO()
    sys.stderr.flush()
    kept = os.dup(2)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def fresh_state() -> None:
    """As a new process would begin: no accelerator, and the same random state whatever ran before."""
    import numpy as np
    import torch
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def call(job: Job, flags: str, work: Path) -> list[str]:
    """Runs the script in this process; returns the lines that it printed."""
    script, rank = load_script(job.script), os.environ.get("RANK", "0")
    fresh_state()
    with output_to(work / "logs" / f"{job.key.replace('/', '-')}-{rank}.txt") as printed:
        script.main(script.parse_args(job.arguments(flags, work)))
    return without_places(printed.getvalue(), work).splitlines()


def run_job(job: Job, work: Path) -> dict[str, Any]:
    """The entry of a job that leaves files."""
    result: dict[str, Any] = {}
    folder = job.folder(work)
    for number, (name, flags) in enumerate(job.calls.items(), start=1):
        printed = call(job, flags, work)
        if os.environ.get("RANK", "0") != "0":
            continue
        if job.each or number == len(job.calls):
            found = {"printed": printed, "files": describe_folder(folder, work)}
            result |= {name: found} if job.each else found
    if not job.kept and result:
        shutil.rmtree(folder)
    return result


def run_flags(job: Job, work: Path) -> dict[str, Any]:
    """The entry of a script's flags: help and defaults."""
    script, (flags,) = load_script(job.script), job.calls.values()
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        script.parse_args(["--help"])
    defaults = json.loads(json.dumps(vars(script.parse_args(shlex.split(flags))), default=str))
    return {"help": text.getvalue().splitlines(), "defaults": defaults}


def run_build(job: Job, work: Path) -> dict[str, Any]:
    """The entry of a build, whose images then become the other data that trainings read."""
    result = run_job(job, work)
    if job.each:
        with output_to(work / "logs" / f"data-{job.family}.txt"):
            write_other_data(work / "data", job.family)
    return result


def write_other_data(data: Path, family: str) -> None:
    """A folder of images with captions, and pairs of images with and without scores."""
    import pyarrow.parquet as pq
    from datasets import Dataset, Image

    build = data / f"build-{family}"
    files = sorted((build / "candidates").glob("part-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).select(["prompt", "variant", "image"]).to_pylist()]
    scores = pq.read_table(build / "scored.parquet")["reward"].to_pylist()
    rows = [row | {"score": score} for row, score in zip(rows, scores, strict=True)]
    first, second = ([row for row in rows if row["variant"] == variant] for variant in (1, 2))

    folder = data / f"folder-{family}"
    folder.mkdir()
    for number, row in enumerate(first):
        file = folder / f"{number:02}.png"
        file.write_bytes(row["image"]["bytes"])
        os.utime(file, (0, 0))  # score_images.py tells files apart by their times, too
    lines = [json.dumps({"file_name": f"{number:02}.png", "text": row["prompt"]}) for number, row in enumerate(first)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))

    columns: dict[str, list] = {"prompt": [row["prompt"] for row in first]}
    columns |= {f"image_{side}": [row["image"] for row in part] for side, part in enumerate((first, second))}
    won = [float(one["score"] > other["score"]) for one, other in zip(first, second)]
    columns["label_0"] = [0.5 if number % 7 == 3 else label for number, label in enumerate(won)]  # some ties
    scored = {f"score_{side}": [row["score"] for row in part] for side, part in enumerate((first, second))}
    for name, extra in (("pairs", {}), ("scored_pairs", scored)):
        dataset = Dataset.from_dict(columns | extra)
        for image in ("image_0", "image_1"):
            dataset = dataset.cast_column(image, Image())
        dataset.to_parquet(data / f"{name}-{family}" / "train.parquet")


RUNNERS: dict[str, Callable[[Job, Path], dict]] = {"flags": run_flags, "build": run_build}


def run_jobs(jobs: Sequence[Job], record: Record, work: Path) -> None:
    """Runs jobs in this process, which may be one of several; the first one records."""
    is_first = os.environ.get("RANK", "0") == "0"
    several = "WORLD_SIZE" in os.environ
    if several:
        keep_process_group()
    for number, job in enumerate(jobs, start=1):
        start = time.perf_counter()
        try:
            result = RUNNERS.get(job.key.partition("/")[0], run_job)(job, work)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            result = {"error": without_places(f"{type(error).__name__}: {error}", work)}
        seconds = time.perf_counter() - start
        if is_first:
            record.add(job.key, result, seconds)
            state = "FAILED" if "error" in result else "done"
            print(f"[{number}/{len(jobs)}] {job.key} {state} in {seconds:.1f} s", flush=True)
        if several and "error" in result:
            raise SystemExit(1)  # or the other process would wait for this one


def keep_process_group() -> None:
    """All runs share one group: their end would close it, and torchrun's store cannot make a second one."""
    from accelerate.state import PartialState

    PartialState.destroy_process_group = lambda self, group=None: None


def run_two_processes(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """The same program on two processes, under torchrun; a run that fails ends both, and the next one starts anew."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(PROGRAM), "--output", str(args.output), "--work", str(args.work), "--only"]
    while jobs:
        subprocess.run([*command, *(job.key for job in jobs)])
        record = Record(args.output)
        done = next((number for number, job in enumerate(jobs) if not record.is_done(job.key)), len(jobs))
        jobs = jobs[done + 1 :]


def record_all(args: argparse.Namespace) -> int:
    """Makes what is missing of a record; returns the exit code."""
    args.output, args.work = args.output.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare_process(args.work)
    record, chosen = Record(args.output), chosen_jobs(args.only)
    if "WORLD_SIZE" in os.environ:
        run_jobs(chosen, record, args.work)
        return 0
    for part in PARTS:
        jobs = [job for job in chosen if job.key.startswith(f"{part}/") and not record.is_done(job.key)]
        for job in jobs:
            remove_outputs(job, args.work)
        if part == "two" and jobs:
            run_two_processes(jobs, args)
            record = Record(args.output)
        else:
            run_jobs(jobs, record, args.work)
        if jobs:
            print(f"{part}: {sum(record.seconds.get(job.key, 0) for job in jobs):.0f} s", flush=True)
    open_keys = [job.key for job in chosen if not record.is_done(job.key)]
    print(f"{len(chosen) - len(open_keys)} of {len(chosen)} recorded in {args.output}", *open_keys, sep="\n  ")
    return int(bool(open_keys))


def remove_outputs(job: Job, work: Path) -> None:
    """A job begins with an empty folder, and a build without what was made of an earlier one."""
    folders = [job.folder(work)]
    if job.each:
        folders += [work / "data" / f"{name}-{job.family}" for name in ("folder", "pairs", "scored_pairs")]
        folders += [work / "huggingface" / "datasets"]  # copies of files that now have the same times
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
