#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Records what the example scripts compute on the embedded models, for refactorings that must not change it.

    python scripts/record_behaviour.py --output before.json --work work_before
    ... refactor ...
    python scripts/record_behaviour.py --output after.json --work work_after
    python scripts/record_behaviour.py compare before.json after.json

It goes through the example scripts and the files that they leave, and through nothing else of the package, whose modules
and classes may therefore move. The parts of a record are

    flags   every script's help and defaults
    build   datasets from prompts, with several selections
    train   every objective on both families, full and LoRA, and the options that take other ways through the code
    two     the same on two processes, and a build that two processes share
    demo    evaluations of what `train` left, a comparison of them, and scores of a folder of images

`--only train "two/sd15-dpo*"` takes parts or keys. Results are written as they come: the same command goes on where it
was interrupted and repeats what failed. `train`, `two` and `demo` need the folder `--work` with what `build` made.

Floats are kept as they are and weights as hashes of their bytes, so that two records agree only on the same kind of CPU
and with the same libraries; everything runs offline on one thread a process. Where checkout and work folder lie does not
matter. A whole record takes about eight minutes of one core and 400 MB.
"""

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("flags", "build", "train", "two", "demo")
FAMILIES = ("sd15", "sdxl")
LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "peft", "numpy", "pillow", "pyarrow")

BUILD, EVALUATE = "craft/build_craft_dataset.py", "craft/evaluate_craft.py"
CRAFT, PREFERENCE, SMPO = "craft/train_craft_{family}.py", "preference/train_preference.py", "smpo/train_smpo.py"
SHARPENING = "diffusion_sharpening/train_diffusion_sharpening.py"

# Script -> the flags without which it does not parse.
REQUIRED = {
    BUILD: "--pretrained_model_name_or_path m --prompts p --output_dir o",
    CRAFT.format(family="sd15"): "--pretrained_model_name_or_path m",
    CRAFT.format(family="sdxl"): "--pretrained_model_name_or_path m",
    PREFERENCE: "--pretrained_model_name_or_path m",
    SMPO: "--pretrained_model_name_or_path m",
    SHARPENING: "--pretrained_model_name_or_path m",
    EVALUATE: "--base b --prompts p --output_dir o",
    "craft/score_images.py": "--images i --output_dir o",
    "craft/compare_craft.py": "r --output_dir o",
    "craft/publish_craft.py": "--output_dir o --hub_model_id m",
}

# Generated and scored once, selected several times; the last selection, with advantages of both signs, is trained on.
GENERATION = (
    "--pretrained_model_name_or_path tiny-{family} --prompts tiny-train --num_prompts 24 --num_refinements 3"
    " --num_inference_steps 6 --guidance_scale 3 --generation_batch_size 16 --save_latents --output_dir {build}"
)
SELECTIONS = {
    "top": "--filter_rule hpa --num_samples 4",
    "random": "--filter_rule ha --reward_normalization rank --selection random --num_samples 6 --max_per_prompt 2",
    "low": "--filter_rule aesthetic pickscore --reward_normalization minmax --selection low --num_samples 5",
    "all": "--filter_rule none --selection all --max_per_prompt 0",
}
SMALL_BUILD = (
    "--pretrained_model_name_or_path tiny-{family} --prompts tiny-heldout --num_prompts 8 --num_refinements 2"
    " --num_seeds 2 --num_inference_steps 4 --guidance_scale 1 --rewards aesthetic=1 pickscore=0.5 --filter_rule pa"
    " --num_samples 4 --seed 3 --reward_residency together --output_dir {output}"
)

TRAINING = (
    "--pretrained_model_name_or_path tiny-{family} --resolution 64 --train_batch_size 4 --gradient_accumulation_steps 1"
    " --max_train_steps 20 --learning_rate 1e-4 --report_to none --output_dir {output}"
)
ALIGNMENT, FEW = "--backbone {family}", "--max_train_steps 8"
ROLL_OUT = f"{ALIGNMENT} --max_train_steps 5 --guidance_scale 2"
METHODS = {  # name -> script, flags
    "craft": (CRAFT, ""),
    "sft": (CRAFT, "--loss sft"),
    "dpo": (PREFERENCE, f"{ALIGNMENT} --objective dpo"),
    "kto": (PREFERENCE, f"{ALIGNMENT} --objective kto"),
    "mapo": (PREFERENCE, f"{ALIGNMENT} --objective mapo"),
    "dspo": (PREFERENCE, f"{ALIGNMENT} --objective dspo"),
    "inpo": (PREFERENCE, f"{ALIGNMENT} --objective inpo {FEW}"),
    "spo": (PREFERENCE, f"{ROLL_OUT} --objective spo --chain_steps 8 --first_step 2 --states_per_prompt 2"),
    "smpo": (SMPO, f"{ALIGNMENT} {FEW}"),
    "sharpening-sft": (SHARPENING, f"{ALIGNMENT} --sharpening sft {FEW}"),
    "sharpening-rlhf": (SHARPENING, f"{ROLL_OUT} --sharpening rlhf --generation_steps 6"),
}
LORA, BF16, REWARDS = "--use_lora", "--mixed_precision bf16", "--rewards hps_v2.1=0.4 pickscore=0.4 aesthetic=0.2"
# Name -> method, families, the flags of a run, and of a second one that goes on in the same folder.
VARIANTS: dict[str, tuple[str, ...]] = {
    "craft-weighted": ("craft", "sd15 sdxl", "--snr_gamma 5 --noise_offset 0.1 --use_ema --caption_dropout 0.3"),
    "craft-latents": ("craft", "sd15 sdxl", "--use_generated_latents --advantage_clip_min 0"),
    "craft-crops": ("craft", "sd15 sdxl", f"--resolution 48 --random_flip {FEW}"),
    "craft-centre": ("craft", "sdxl", f"--resolution 48 --center_crop {FEW}"),
    "craft-accumulated": (
        "craft",
        "sd15",
        "--train_batch_size 2 --gradient_accumulation_steps 2 --scale_lr --max_grad_norm 0.1 --lr_scheduler cosine"
        " --lr_warmup_steps 3 --seed 5 --gradient_checkpointing",
    ),
    "craft-epochs": ("craft", "sd15", "--max_train_samples 10 --num_train_epochs 3"),
    "craft-adafactor": ("craft", "sd15", f"--use_adafactor --channels_last {FEW}"),
    "craft-bf16": ("craft", "sd15 sdxl", f"{BF16} --train_dtype bf16 {FEW}"),
    "craft-mixed": ("craft", "sd15 sdxl", f"{BF16} {FEW}"),
    "craft-velocity": ("craft", "sd15", f"--prediction_type v_prediction --snr_gamma 5 {FEW}"),
    "craft-folder": ("craft", "sd15", f"--train_data_dir {{folder}} --caption_column text {FEW}"),
    "craft-vae": ("craft", "sdxl", f"--pretrained_vae_model_name_or_path {{work}}/train/sdxl-craft-full/vae {FEW}"),
    "craft-drawn": (
        "craft",
        "sd15",
        "--max_train_samples 8 --validation_prompt circle --num_validation_images 1 --validation_epochs 2 --use_ema"
        " --max_train_steps 6 --checkpointing_steps 2 --checkpoints_total_limit 2",
    ),
    "craft-resumed": (
        "craft",
        "sd15 sdxl",
        "--use_ema --checkpointing_steps 2 --max_train_steps 4",
        "--use_ema --checkpointing_steps 2 --max_train_steps 8 --resume_from_checkpoint latest",
    ),
    "craft-lora-dropout": ("craft", "sd15 sdxl", f"{LORA} --rank 8 --lora_alpha 4 --lora_dropout 0.3 {FEW}"),
    "craft-lora-mixed": ("craft", "sdxl", f"{LORA} {BF16} {FEW}"),
    "craft-lora-resumed": (
        "craft",
        "sd15",
        f"{LORA} --checkpointing_steps 2 --max_train_steps 4",
        f"{LORA} --checkpointing_steps 2 --max_train_steps 8 --resume_from_checkpoint latest",
    ),
    "craft-ruined": ("craft", "sd15", "--learning_rate 3e-2"),  # for the alarms
    "dpo-baseline": ("dpo", "sd15", f"--pairing best_baseline --num_pairs 10 --beta 50 --caption_dropout 0.3 {FEW}"),
    "dpo-tuned": ("dpo", "sd15", f"--pretrained_model_name_or_path {{work}}/train/sd15-craft-full {FEW}"),
    "dpo-pairs": ("dpo", "sd15", f"--dataset_name {{pairs}} --max_train_samples 8 {FEW}"),
    "dpo-scored": ("dpo", "sdxl", f"--dataset_name {{scored_pairs}} --num_pairs 8 {FEW}"),
    "dpo-mixed": ("dpo", "sd15", f"{BF16} {FEW}"),
    "dpo-lora-mixed": ("dpo", "sdxl", f"{LORA} {BF16} {FEW}"),
    "dpo-resumed": (
        "dpo",
        "sd15",
        "--checkpointing_steps 2 --max_train_steps 4",
        "--checkpointing_steps 2 --max_train_steps 8 --resume_from_checkpoint latest",
    ),
    "kto-averse": ("kto", "sd15", f"--utility loss_averse --liked_weight 0.5 --disliked_weight 2 {FEW}"),
    "kto-seeking": ("kto", "sdxl", f"--utility risk_seeking --dataset_name {{pairs}} --max_train_samples 12 {FEW}"),
    "mapo-code": ("mapo", "sd15", f"--form code --beta 0.1 --scale 0.3 {FEW}"),
    "dspo-gate": ("dspo", "sd15", f"--no-detach_gate --gate_beta 100 --beta 0.8 {FEW}"),
    "inpo-official": ("inpo", "sd15 sdxl", "--grid official --renoise every --inverter policy"),
    "inpo-final": ("inpo", "sd15", "--renoise final --inversion_steps 4 --use_lora"),
    "inpo-forward": ("inpo", "sd15", "--inversion_steps 0 --noise_offset 0.1"),
    "smpo-official": ("smpo", "sd15", "--grid official --renoise every --inverter policy --gamma 5"),
    "smpo-rewards": ("smpo", "sd15", f"--dataset_name {{pairs}} --inversion_steps 3 {REWARDS}"),
    "smpo-scored": ("smpo", "sdxl", "--dataset_name {scored_pairs} --inversion_steps 3 --score_range -2 2"),
    "spo-threshold": ("spo", "sd15 sdxl", f"--threshold 0.1 --guidance_scale 1 --num_candidates 3 --clip 1 {REWARDS}"),
    "spo-folder": (
        "spo",
        "sd15",
        "--train_data_dir {folder} --caption_column text --max_train_samples 6 --max_train_steps 3",
    ),
    "sharpening-sft-alone": ("sharpening-sft", "sd15", "--num_noises 1 --num_states 4 --noise_offset 0.1"),
    "sharpening-sft-rewards": ("sharpening-sft", "sdxl", f"--grid_steps 10 --use_ema {REWARDS}"),
    "sharpening-rlhf-code": (
        "sharpening-rlhf",
        "sd15 sdxl",
        f"--form code --image_sharing n --no-fresh_noise --eta 0.5 {REWARDS}",
    ),
    "sharpening-rlhf-images": ("sharpening-rlhf", "sd15", "--generation_steps 0 --num_noises 2 --beta 100"),
}
HALVES = "--train_batch_size 2"  # of a batch that two processes share
TWO_PROCESSES: dict[str, tuple[str, ...]] = {
    **{f"{method}-full": (method, "sd15", f"--max_train_steps 4 {HALVES}") for method in METHODS},
    **{f"{method}-lora": (method, "sdxl", f"--max_train_steps 4 {HALVES} {LORA}") for method in METHODS},
    "craft-weighted": (
        "craft",
        "sd15",
        f"--max_train_steps 4 {HALVES} --snr_gamma 5 --noise_offset 0.1 --use_ema --caption_dropout 0.3"
        " --gradient_accumulation_steps 2",
    ),
    "dpo-resumed": (
        "dpo",
        "sd15",
        f"--checkpointing_steps 2 --max_train_steps 2 {HALVES}",
        f"--checkpointing_steps 2 --max_train_steps 4 {HALVES} --resume_from_checkpoint latest",
    ),
    "smpo-rewards": (
        "smpo",
        "sd15",
        f"--dataset_name {{pairs}} --inversion_steps 3 --max_train_steps 3 {HALVES} {REWARDS}",
    ),
}

TABLES = {  # the demo: name -> script, flags
    "sd15": (
        EVALUATE,
        "--base base=tiny-sd15 --tuned craft={work}/train/sd15-craft-full sft={work}/train/sd15-sft-full"
        " lora={work}/train/sd15-craft-lora ruined={work}/train/sd15-craft-ruined"
        " checkpoint={work}/train/sd15-craft-resumed/checkpoint-4 --training_data sft={work}/build/small"
        " --prompts tiny-heldout --num_prompts 36 --num_inference_steps 6 --guidance_scale 2 --batch_size 24"
        " --output_dir {output}",
    ),
    "sdxl": (
        EVALUATE,
        "--base tiny-sdxl --tuned craft={work}/train/sdxl-craft-full {work}/train/sdxl-sft-lora --prompts tiny-heldout"
        " --num_prompts 12 --images_per_prompt 2 --num_inference_steps 6 --guidance_scale 2 --batch_size 24"
        " --rewards aesthetic pickscore --alarm_embedding clip --seed 1 --output_dir {output}",
    ),
    "comparison": (
        "craft/compare_craft.py",
        "one={work}/demo/sd15 other={work}/demo/sdxl --allow all --output_dir {output}",
    ),
    "scores": (
        "craft/score_images.py",
        "--images {work}/data/folder-sd15 --caption_column text --rewards hps_v2.1 pickscore aesthetic"
        " --reward_checkpoint hps_v2.1=tiny --reward_checkpoint pickscore=tiny --reward_checkpoint aesthetic=tiny"
        " --output_dir {output} --output_file {output}/scores.csv {output}/scores.parquet",
    ),
}
KEPT = {"sd15-craft-full", "sd15-sft-full", "sd15-craft-lora", "sd15-craft-ruined", "sd15-craft-resumed"}
KEPT |= {"sdxl-craft-full", "sdxl-sft-lora"}

VOLATILE = {"paths", "_name_or_path", "versions", "speed", "cost"}  # keys in JSON: places, libraries and times
SHOWN = 40  # characters of a value in the table of differences
NUMBERS = (int, float, type(None))


@dataclass(frozen=True)
class Job:
    """One entry of a record: calls of a script, one after another, and the folder that they fill."""

    key: str
    script: str
    calls: dict[str, str]  # name -> flags
    family: str = "sd15"
    each: bool = False  # whether the folder is recorded after every call, not only at the end
    kept: bool = True  # whether the folder stays
    output: str = ""  # below --work, where it is not the key

    def folder(self, work: Path) -> Path:
        """What `{output}` stands for."""
        return work / (self.output or self.key)

    def arguments(self, flags: str, work: Path) -> list[str]:
        """The command line of a call."""
        data, family = work / "data", self.family
        places = {name: data / f"{name}-{family}" for name in ("build", "folder", "pairs", "scored_pairs")}
        return shlex.split(flags.format(family=family, work=work, output=self.folder(work), **places))


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


# Jobs


def all_jobs() -> list[Job]:
    """Everything that a record holds, in the order in which it can be made."""
    jobs = [Job(f"flags/{Path(script).stem}", script, {"": flags}) for script, flags in REQUIRED.items()]
    for family in FAMILIES:
        calls = {name: f"{GENERATION} {flags}" for name, flags in SELECTIONS.items()}
        jobs.append(Job(f"build/{family}", BUILD, calls, family, each=True, output=f"data/build-{family}"))
    jobs.append(Job("build/small", BUILD, {"": SMALL_BUILD}))
    variants = {f"{name}-full": (name, " ".join(FAMILIES), "") for name in METHODS}
    variants |= {f"{name}-lora": (name, " ".join(FAMILIES), LORA) for name in METHODS} | VARIANTS
    jobs += training_jobs("train", variants)
    jobs += [Job("two/build", BUILD, {"": SMALL_BUILD}), *training_jobs("two", TWO_PROCESSES)]
    return jobs + [Job(f"demo/{name}", script, {"": flags}) for name, (script, flags) in TABLES.items()]


def training_jobs(part: str, variants: dict[str, tuple[str, ...]]) -> list[Job]:
    """One job a variant and family."""
    jobs = []
    for name, (method, families, *runs) in variants.items():
        script, flags = METHODS[method]
        for family in families.split():
            calls = {}
            for number, own in enumerate(runs):
                data = "" if "--train_data_dir" in own else "--dataset_name {build}"
                calls[str(number)] = f"{TRAINING} {data} {flags} {own}"
            key = f"{part}/{family}-{name}"
            kept = part == "train" and f"{family}-{name}" in KEPT
            jobs.append(Job(key, script.format(family=family), calls, family, kept=kept))
    return jobs


def chosen_jobs(only: Sequence[str]) -> list[Job]:
    """The jobs whose part or key fits a pattern; all of them without patterns."""
    jobs = all_jobs()
    for pattern in only:
        if not any(fits(job.key, [pattern]) for job in jobs):
            raise SystemExit(f"--only: expected a part ({', '.join(PARTS)}) or a key of one, found {pattern!r}")
    return [job for job in jobs if fits(job.key, only)]


def fits(key: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatch(key, p) or key.startswith(f"{p.rstrip('/')}/") for p in only)


# Running


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
    command = [*launcher, __file__, "--output", str(args.output), "--work", str(args.work), "--only"]
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


# Describing


def describe_folder(folder: Path, work: Path) -> dict[str, Any]:
    """Relative name to what is in the file, for every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): describe_file(path, path.parent == folder, work) for path in files}


def describe_file(path: Path, is_record: bool, work: Path) -> Any:
    """Records and tables by their content, all else by a hash; `present` where the bytes say nothing."""
    if path.suffix == ".safetensors":
        return hash_tensors(path)
    if path.suffix == ".parquet":
        return describe_columns(path)
    if path.suffix == ".json":
        content = settled(json.loads(path.read_text(encoding="utf-8")), work)
        return content if is_record else digest(json.dumps(content, sort_keys=True).encode())
    if path.suffix in (".md", ".csv", ".tex"):
        return without_places(path.read_text(encoding="utf-8"), work).splitlines()
    if path.suffix in (".html", ".txt", ".jsonl"):
        return digest(without_places(path.read_text(encoding="utf-8"), work).encode())
    return digest(path.read_bytes()) if path.suffix == ".png" else "present"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def without_places(text: str, work: Path) -> str:
    return text.replace(str(work), "<work>").replace(str(ROOT), "<repository>")


def settled(value: Any, work: Path) -> Any:
    """JSON without places and times; a history becomes a list of numbers a metric."""
    if isinstance(value, dict):
        kept = {without_places(key, work): part for key, part in value.items() if key not in VOLATILE}
        return {key: by_metric(part) if key == "loss_history" else settled(part, work) for key, part in kept.items()}
    if isinstance(value, list):
        return [settled(part, work) for part in value]
    return without_places(value, work) if isinstance(value, str) else value


def by_metric(history: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for entry in history for name in entry)
    return {name: [entry.get(name) for entry in history] for name in names}


def hash_tensors(path: Path) -> str:
    """Over names, types, shapes and bytes, in the order of the names; the file's own metadata do not count."""
    import torch
    from safetensors.torch import load_file

    found, tensors = hashlib.sha256(), load_file(path)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def describe_columns(path: Path) -> dict[str, Any]:
    """A hash of every column's type and rows; numbers with a fraction as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, table = {}, pq.read_table(path)
    for name in table.column_names:
        column = table[name]
        values = column.to_pylist()
        is_number = pa.types.is_floating(column.type)
        columns[name] = values if is_number else digest(f"{column.type} {values!r}".encode())
    return columns


# Comparing


def compare(before: Path, after: Path, only: Sequence[str]) -> int:
    """Prints what differs between two records; returns the exit code."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    for name in sorted(one["about"] | other["about"]):
        found = one["about"].get(name), other["about"].get(name)
        if found[0] != found[1] and name != "commit":
            print(f"note: {name} was {found[0]} before, is {found[1]} after")
    keys = [key for key in one["results"] | other["results"] if fits(key, only)]
    lines, different = [], 0
    for key in keys:
        found = differences(one["results"].get(key), other["results"].get(key))
        lines += [(f"{key}: {name}" if name else key, *values) for name, *values in found]
        different += bool(found)
    if lines:
        print_table([("name", "before", "after", "largest difference"), *lines])
    print(f"{different} of {len(keys)} entries differ, in {len(lines)} places")
    return int(bool(lines))


def differences(before: Any, after: Any) -> list[tuple[str, str, str, str]]:
    """Name, both values and, where they are numbers, the largest difference."""
    if before is None or after is None:
        return [] if before is after else [("", *("absent" if v is None else "there" for v in (before, after)), "")]
    if "error" in before or "error" in after:  # then nothing else is there to compare
        values = [side.get("error", "no error") for side in (before, after)]
        return [] if values[0] == values[1] else [("error", *values, "")]
    one, other = dict(leaves(before)), dict(leaves(after))
    found = []
    for name in one | other:
        values = [side.get(name, "absent") for side in (one, other)]
        if repr(values[0]) != repr(values[1]):  # also tells NaN from numbers, and finds it equal to itself
            found.append((name, *difference(*values)))
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested JSON by its dotted name; lists of numbers stay whole."""
    is_numbers = isinstance(value, list) and value and all(isinstance(part, NUMBERS) for part in value)
    if not value or is_numbers or not isinstance(value, (dict, list)):
        yield name, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(part, f"{name} {key}".strip())


def difference(before: Any, after: Any) -> tuple[str, str, str]:
    """Both values for the table, of lists of numbers those that differ most, and by how much."""
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        number = all(isinstance(value, (int, float)) for value in (before, after))
        return shown(before), shown(after), f"{abs(after - before):.3g}" if number else ""
    gaps = [gap(one, other) for one, other in zip(before, after)]
    place, count = gaps.index(max(gaps)), sum(one > 0 for one in gaps)
    where = f"{gaps[place]:.3g} at {place}; {count} of {len(gaps)} differ"
    return shown(before[place]), shown(after[place]), where


def gap(one: float | None, other: float | None) -> float:
    if repr(one) == repr(other):
        return 0.0
    size = math.inf if one is None or other is None else abs(other - one)
    return math.inf if math.isnan(size) else size


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def main() -> int:
    comparing = sys.argv[1:2] == ["compare"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if comparing:
        parser.add_argument("before", type=Path)
        parser.add_argument("after", type=Path)
    else:
        parser.add_argument("--output", type=Path, required=True, help="The record, a JSON file.")
        parser.add_argument("--work", type=Path, required=True, help="Folder of what the scripts write.")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="Parts or keys, also with * in them.")
    args = parser.parse_args(sys.argv[1 + comparing :])
    return compare(args.before, args.after, args.only) if comparing else record_all(args)


if __name__ == "__main__":
    sys.exit(main())
