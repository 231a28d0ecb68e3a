# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of the training scripts are an interface: diffusers' names, CRAFT's recipe as defaults."""

import importlib.util
import json
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffusers_craft import TrainingSettings
from diffusers_craft.scripts import add_fields, from_args


EXAMPLES = Path(__file__).parent.parent / "examples"
REQUIRED = ["--pretrained_model_name_or_path=m", "--dataset_name=d"]
# Script -> flag -> default, or "required"; `null` also for what the family of the model decides.
FROZEN = json.loads((Path(__file__).parent / "flags.json").read_text())
FOLDERS = {"train_smpo": "smpo", "train_preference": "preference"}
FOLDERS["train_diffusion_sharpening"] = "diffusion_sharpening"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / FOLDERS.get(name, "craft") / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("script", FROZEN)
def test_flags_are_frozen(script, monkeypatch):
    """Names and defaults; a flag is added here and with a test of what it does."""
    parsers, parse = [], ArgumentParser.parse_args
    monkeypatch.setattr(ArgumentParser, "parse_args", lambda self, args: (parsers.append(self), parse(self, args))[1])
    load_script(script).parse_args(REQUIRED)
    actions = [action for action in parsers[0]._actions if action.dest != "help"]
    found = {" ".join(a.option_strings): "required" if a.required else parsers[0].get_default(a.dest) for a in actions}
    assert found == FROZEN[script]
    assert all(action.help for action in actions)


def test_a_field_without_a_text_is_no_flag():
    @dataclass(frozen=True, kw_only=True)
    class Nameless(TrainingSettings):
        """Has no Args."""

        speed: float = 1.0

    with pytest.raises(TypeError, match="Nameless.speed: expected a text under Args in the docstring, found none"):
        add_fields(ArgumentParser(), Nameless)


def _settings(script: str, *flags: str) -> TrainingSettings:
    return from_args(TrainingSettings, load_script(script).parse_args(flags))


def test_defaults_are_the_recipe():
    args = _settings("train_craft_sd15", *REQUIRED)
    assert args.train_batch_size * args.gradient_accumulation_steps == 128
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2) == (5e-5, 0.9, 0.999)
    assert (args.adam_weight_decay, args.max_grad_norm, args.lr_scheduler) == (1e-2, 1.0, "constant")
    assert args.caption_dropout == 0.0
    assert (args.caption_column, args.resolution) == ("prompt", None)  # the model's own
    assert args.checkpointing_steps is None  # 50, one kept until the run has ended


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_data_dir=x"], "--dataset_name, --train_data_dir: expected exactly one of the two, found both"),
        (["--train_batch_size=0"], "--train_batch_size: expected at least 1, found 0"),
        (["--max_train_steps=-3"], "--max_train_steps: expected at least 1, found -3"),
        (["--caption_dropout=1.5"], r"--caption_dropout: expected a probability in \[0, 1\], found 1.5"),
        (
            ["--lr_warmup_steps=50"],
            "--lr_warmup_steps: expected .* constant_with_warmup, found constant, which ignores it",
        ),
        (
            ["--checkpoints_total_limit=3"],
            "--checkpoints_total_limit: expected --checkpointing_steps with it, found none",
        ),
        (["--rank=8"], "--rank, --lora_alpha, --lora_dropout: expected --use_lora with them, found none"),
        (["--use_lora", "--rank=0"], "--rank: expected at least 1, found 0"),
        (["--use_lora", "--lora_alpha=0"], "--lora_alpha: expected at least 1, found 0"),
        (["--use_lora", "--lora_dropout=1"], r"--lora_dropout: expected a probability in \[0, 1\), found 1.0"),
        (["--use_lora", "--use_ema"], "--use_ema: expected full fine-tuning, found --use_lora"),
        (["--use_8bit_adam", "--use_adafactor"], "--use_8bit_adam, --use_adafactor: expected at most one of the two"),
        (["--train_dtype=bf16", "--use_lora"], "--train_dtype: expected fp32 with --use_lora, .*, found bf16"),
        (["--train_dtype=bf16", "--use_ema"], "--train_dtype: expected fp32 with --use_ema, .*, found bf16"),
        (["--max_grad_norm=0"], "--max_grad_norm: expected more than 0, found 0.0"),
        (["--snr_gamma=0"], "--snr_gamma: expected more than 0, found 0.0"),
        (["--learning_rate=-1"], "--learning_rate: expected more than 0, found -1.0"),
        (["--learning_rate=nan"], "--learning_rate: expected more than 0, found nan"),
        (["--adam_beta1=1.5"], r"--adam_beta1: expected a number in \[0, 1\), found 1.5"),
        (["--adam_beta2=1"], r"--adam_beta2: expected a number in \[0, 1\), found 1.0"),
        (["--adam_weight_decay=-0.1"], "--adam_weight_decay: expected at least 0, found -0.1"),
        (["--adam_epsilon=0"], "--adam_epsilon: expected more than 0, found 0.0"),
        (["--lr_warmup_steps=-1"], "--lr_warmup_steps: expected at least 0, found -1"),
        (["--noise_offset=-1"], "--noise_offset: expected at least 0, found -1.0"),
        (["--hub_model_id=org/m"], "--hub_model_id, .*: expected --push_to_hub with them, found none"),
        (
            ["--push_to_hub", "--push_unet_only", "--use_lora"],
            "--push_unet_only: expected full fine-tuning, found --use_lora",
        ),
        (["--random_flip", "--use_generated_latents"], "--random_flip: expected no flips"),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        _settings("train_craft_sd15", *REQUIRED, *flags)


@pytest.mark.parametrize("name", ["unet", "logs"])
def test_a_file_where_a_folder_will_be_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(
        ValueError, match=f"^--output_dir: expected a folder or nothing at {tmp_path}/out/{name}, found a"
    ):
        _settings("train_craft_sd15", *REQUIRED, "--output_dir=~/out")
    assert _settings("train_craft_sd15", *REQUIRED, "--output_dir=~/other").output_dir == str(tmp_path / "other")


def test_generated_latents_belong_to_their_vae():
    flags = [*REQUIRED, "--use_generated_latents", "--pretrained_vae_model_name_or_path=other"]
    with pytest.raises(
        ValueError, match="--use_generated_latents: expected the VAE .*, found --pretrained_vae.* other"
    ):
        _settings("train_craft_sdxl", *flags)


def test_a_dataset_is_required():
    with pytest.raises(ValueError, match="expected exactly one of the two, found neither"):
        _settings("train_craft_sd15", REQUIRED[0])


def test_scripts_differ_in_a_few_lines_only():
    sd15 = (EXAMPLES / "craft" / "train_craft_sd15.py").read_text().replace("SD15", "SDXL").splitlines()
    sdxl = (EXAMPLES / "craft" / "train_craft_sdxl.py").read_text().splitlines()
    assert len(set(sdxl) - set(sd15)) <= 15


def test_a_choice_is_checked_without_a_command_line():
    with pytest.raises(ValueError, match="--lr_scheduler: expected one of linear, .*, found 'sine'"):
        TrainingSettings(pretrained_model_name_or_path="m", dataset_name="d", lr_scheduler="sine")
