# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of the training scripts are an interface: diffusers' names, CRAFT's recipe as defaults."""

import importlib.util
from pathlib import Path

import pytest

from diffusers_craft.training_args import check_training_arguments


EXAMPLES = Path(__file__).parent.parent / "examples" / "craft"
REQUIRED = ["--pretrained_model_name_or_path=m", "--dataset_name=d"]

FLAGS = """
adam_beta1 adam_beta2 adam_epsilon adam_weight_decay advantage_clip_min advantage_column allow_tf32 cache_dir
caption_column caption_dropout center_crop checkpointing_steps checkpoints_total_limit dataset_config_name dataset_name
gradient_accumulation_steps gradient_checkpointing image_column latent_column learning_rate logging_dir lora_alpha lora_dropout loss
lr_scheduler lr_warmup_steps max_grad_norm max_train_samples max_train_steps mixed_precision noise_offset num_train_epochs num_validation_images
output_dir prediction_type pretrained_model_name_or_path random_flip rank report_to resolution
resume_from_checkpoint revision scale_lr seed snr_gamma train_batch_size train_data_dir use_ema use_generated_latents use_lora
validation_epochs validation_prompt variant
""".split()


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(
    ("name", "own"), [("train_craft_sd15", []), ("train_craft_sdxl", ["pretrained_vae_model_name_or_path"])]
)
def test_flags_are_frozen(name, own):
    args = load_script(name).parse_args(REQUIRED)
    assert sorted(vars(args)) == sorted(FLAGS + own)


def test_defaults_are_the_recipe():
    args = load_script("train_craft_sd15").parse_args(REQUIRED)
    assert args.train_batch_size * args.gradient_accumulation_steps == 128
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2) == (5e-5, 0.9, 0.999)
    assert (args.adam_weight_decay, args.max_grad_norm, args.lr_scheduler) == (1e-2, 1.0, "constant")
    assert (args.loss, args.caption_dropout, args.advantage_clip_min) == ("craft", 0.0, None)
    assert (args.caption_column, args.resolution) == ("prompt", 512)
    assert load_script("train_craft_sdxl").parse_args(REQUIRED).resolution == 1024


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_data_dir=x"], "--dataset_name, --train_data_dir: expected exactly one of the two, found both"),
        (["--train_batch_size=0"], "--train_batch_size: expected at least 1, found 0"),
        (["--max_train_steps=-3"], "--max_train_steps: expected at least 1, found -3"),
        (["--caption_dropout=1.5"], r"--caption_dropout: expected a probability in \[0, 1\], found 1.5"),
        (["--rank=8"], "--rank, --lora_alpha, --lora_dropout: expected --use_lora with them, found none"),
        (["--use_lora", "--rank=0"], "--rank: expected at least 1, found 0"),
        (["--use_lora", "--lora_alpha=0"], "--lora_alpha: expected at least 1, found 0"),
        (["--use_lora", "--lora_dropout=1"], r"--lora_dropout: expected a probability in \[0, 1\), found 1.0"),
        (["--use_lora", "--use_ema"], "--use_ema: expected full fine-tuning, found --use_lora"),
        (["--snr_gamma=0"], "--snr_gamma: expected more than 0, found 0.0"),
        (["--noise_offset=-1"], "--noise_offset: expected at least 0, found -1.0"),
        (["--random_flip", "--use_generated_latents"], "--random_flip: expected no flips"),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        check_training_arguments(load_script("train_craft_sd15").parse_args([*REQUIRED, *flags]))


def test_a_dataset_is_required():
    args = load_script("train_craft_sd15").parse_args(REQUIRED[:1])
    with pytest.raises(ValueError, match="expected exactly one of the two, found neither"):
        check_training_arguments(args)


def test_scripts_differ_in_a_few_lines_only():
    sd15 = (EXAMPLES / "train_craft_sd15.py").read_text().replace("SD15", "SDXL").splitlines()
    sdxl = (EXAMPLES / "train_craft_sdxl.py").read_text().splitlines()
    assert len(set(sdxl) - set(sd15)) <= 15
