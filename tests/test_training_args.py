# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of the training scripts are an interface: diffusers' names, CRAFT's recipe as defaults."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from diffusers_craft.training.args import check_training_arguments


EXAMPLES = Path(__file__).parent.parent / "examples" / "craft"
REQUIRED = ["--pretrained_model_name_or_path=m", "--dataset_name=d"]

# For every flag the test that would fail if it did nothing.
EXERCISED_BY = {
    "test_training_recipe.py::test_a_run_is_the_plain_loop": "adam_beta1 adam_beta2 adam_epsilon adam_weight_decay learning_rate lr_scheduler lr_warmup_steps max_grad_norm scale_lr use_adafactor",
    "test_training_recipe.py::test_8bit_adam_trains_and_resumes_exactly": "use_8bit_adam",
    "test_training_recipe.py::test_bfloat16_weights_train_resume_exactly_and_load": "train_dtype",
    "test_training_recipe.py::test_master_weights_and_vae_stay_float32_in_mixed_precision": "mixed_precision",
    "test_training_recipe.py::test_gradient_checkpointing_changes_memory_only": "gradient_checkpointing",
    "test_training_recipe.py::test_channels_last_changes_the_layout_only": "channels_last",
    "test_training_recipe.py::test_allow_tf32_is_off_unless_asked_for": "allow_tf32",
    "test_training_recipe.py::test_torch_compile_compiles_every_transformer_block_and_leaves_names_alone": "torch_compile",
    "test_training_encoding.py::test_weights": "advantage_clip_min loss",
    "test_training_encoding.py::test_max_train_samples_keeps_rows_together": "max_train_samples",
    "test_training_encoding.py::test_sizes_are_true_and_float32": "center_crop",
    "test_training_encoding.py::test_latents_are_the_scaled_posterior": "random_flip",
    "test_training_encoding.py::test_cache_is_used_for_the_same_data_and_only_for_it": "resolution",
    "test_training_flags.py::test_variant_revision_and_cache_dir_reach_diffusers": "pretrained_model_name_or_path variant revision cache_dir",
    "test_training_flags.py::test_another_vae_encodes_and_is_saved": "pretrained_vae_model_name_or_path",
    "test_training_flags.py::test_a_configuration_of_the_dataset_is_chosen": "dataset_config_name",
    "test_training_flags.py::test_columns_of_other_names_and_further_columns": "image_column caption_column advantage_column",
    "test_training_flags.py::test_latents_of_another_column_are_used": "use_generated_latents latent_column",
    "test_training_flags.py::test_caption_dropout_trains_on_what_the_pipeline_guides_away_from": "caption_dropout",
    "test_training_flags.py::test_seed_and_logging_dir": "seed logging_dir report_to",
    "test_training_flags.py::test_validation_leaves_weights_and_random_state_untouched": "validation_prompt num_validation_images validation_epochs",
    "test_training_flags.py::test_sizes_reach_the_unet_in_float32": "dataset_name",
    "test_single_file.py::test_training_equals_that_of_the_folder": "single_file_config",
    "test_training_objective.py::test_the_loss_is_the_reference": "prediction_type snr_gamma",
    "test_training_objective.py::test_a_noise_offset_reaches_the_loss": "noise_offset",
    "test_training_lora.py::test_rank_alpha_dropout_and_seed_each_change_the_run": "rank lora_alpha lora_dropout",
    "test_training_lora.py::test_alpha_defaults_to_the_rank": "use_lora",
    "test_hub.py::test_a_trained_pipeline_arrives_with_pictures_and_card": "push_to_hub hub_model_id hub_private_repo",
    "test_hub.py::test_checkpoints_go_to_the_hub_while_training": "hub_strategy",
    "test_hub.py::test_a_run_whose_upload_fails_is_published_without_training_again": "push_unet_only",
    "test_training.py::test_an_image_folder_trains_as_sft": "train_data_dir output_dir",
    "test_training.py::test_accumulation_does_not_change_the_run": "train_batch_size gradient_accumulation_steps max_train_steps",
    "test_training.py::test_epochs_become_steps": "num_train_epochs",
    "test_training.py::test_resume_is_exact_in_the_middle_of_a_pass": "checkpointing_steps checkpoints_total_limit resume_from_checkpoint use_ema",
}
OWN_FLAGS = {"train_craft_sd15": set(), "train_craft_sdxl": {"pretrained_vae_model_name_or_path"}}


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_flags_are_frozen():
    """A flag is added with a test of what it does."""
    exercised = [flag for flags in EXERCISED_BY.values() for flag in flags.split()]
    assert len(exercised) == len(set(exercised))
    shared = set(exercised) - set.union(*OWN_FLAGS.values())
    for name, own in OWN_FLAGS.items():
        assert set(vars(load_script(name).parse_args(REQUIRED))) == shared | own


@pytest.mark.parametrize("where", EXERCISED_BY)
def test_every_flag_is_exercised_where_it_says(where):
    file, name = where.split("::")
    source = (Path(__file__).parent / file).read_text()
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(found) == 1
    first = min([found[0].lineno, *(decorator.lineno for decorator in found[0].decorator_list)])
    text = "\n".join(source.splitlines()[first - 1 : found[0].end_lineno])
    constants = {node.id for node in ast.walk(found[0]) if isinstance(node, ast.Name)}  # lists of flags of the file
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and constants & {ast.unparse(target) for target in node.targets}:
            text += ast.unparse(node)
    for flag in EXERCISED_BY[where].split():
        assert re.search(rf"--{flag}\b", text), flag


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
        check_training_arguments(load_script("train_craft_sd15").parse_args([*REQUIRED, *flags]))


def test_generated_latents_belong_to_their_vae():
    flags = [*REQUIRED, "--use_generated_latents", "--pretrained_vae_model_name_or_path=other"]
    with pytest.raises(
        ValueError, match="--use_generated_latents: expected the VAE .*, found --pretrained_vae.* other"
    ):
        check_training_arguments(load_script("train_craft_sdxl").parse_args(flags))


def test_a_dataset_is_required():
    args = load_script("train_craft_sd15").parse_args(REQUIRED[:1])
    with pytest.raises(ValueError, match="expected exactly one of the two, found neither"):
        check_training_arguments(args)


def test_scripts_differ_in_a_few_lines_only():
    sd15 = (EXAMPLES / "train_craft_sd15.py").read_text().replace("SD15", "SDXL").splitlines()
    sdxl = (EXAMPLES / "train_craft_sdxl.py").read_text().splitlines()
    assert len(set(sdxl) - set(sd15)) <= 15
