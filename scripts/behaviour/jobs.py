# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The entries of a record: calls of the example scripts, with flags that go through every way in the code."""

import fnmatch
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


PARTS = ("flags", "build", "train", "two", "demo")
FAMILIES = ("sd15", "sdxl")

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
    """One job per variant and family."""
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
