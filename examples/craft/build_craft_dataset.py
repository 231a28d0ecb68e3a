#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Builds a CRAFT training set from prompts: refine, generate, score, filter, select.

    python build_craft_dataset.py --pretrained_model_name_or_path tiny-sd15 --prompts tiny-train --num_prompts 100 \
        --num_samples 40 --output_dir outputs/dataset

Run the same command again after an interruption: finished work is kept. Rule, weights, normalisation and selection may
then be changed, and the set is selected anew without generating or scoring again.
"""

# /// script
# dependencies = [
#     "diffusers-craft[rewards]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import logging

from diffusers.utils import check_min_version

from diffusers_craft import (
    CRAFTDatasetBuilder,
    GenerationSettings,
    RewardSettings,
    load_pipeline,
    load_refiner,
)
from diffusers_craft.scripts import (
    PRECISIONS,
    HubRepo,
    add_reward_arguments,
    add_source_arguments,
    check_single_file_config,
    default_device,
    format_funnel,
    is_first_rank,
    load_build_prompts,
    load_vae,
    parse_reward_weights,
    probe_folder,
    run_script,
    torch_dtype,
)


check_min_version("0.34.0")

logger = logging.getLogger(__name__)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Builds a CRAFT training set from prompts.")
    add_model_arguments(parser.add_argument_group("model"))
    add_prompt_arguments(parser.add_argument_group("prompts"))
    add_generation_arguments(parser.add_argument_group("generation"))
    add_selection_arguments(parser.add_argument_group("rewards and selection"))
    add_output_arguments(parser.add_argument_group("output"))
    args = parser.parse_args(input_args)
    if args.push_to_hub and not args.hub_dataset_id:
        parser.error("--push_to_hub: expected --hub_dataset_id ORG/NAME with it, found none")
    return args


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="Hub id, folder, .safetensors file, or tiny-sd15 / tiny-sdxl.",
    )
    group.add_argument(
        "--pretrained_vae_model_name_or_path",
        default=None,
        help="Hub id or folder of another VAE than the model's own, for a file without one.",
    )
    add_source_arguments(group)
    group.add_argument(
        "--dtype", choices=list(PRECISIONS), default="fp16", help="Precision of generation on a GPU; a CPU uses fp32."
    )
    group.add_argument("--device", default=None, help="Default: the GPU of this rank if there is one, else the CPU.")


def add_prompt_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts",
        required=True,
        help="File (txt, jsonl, csv, parquet), Hub id (NAME, NAME:SPLIT or NAME:CONFIG:SPLIT) or tiny-train.",
    )
    group.add_argument("--prompt_column", default="prompt", help="Column that holds the prompts.")
    group.add_argument("--num_prompts", type=int, default=None, help="Prompts to draw with --seed; default: all.")
    group.add_argument(
        "--refiner",
        default="template",
        help="What rewrites prompts: openai (any compatible service), transformers (a local LLM), template (adds words"
        " of quality) or none.",
    )
    group.add_argument("--refiner_model", default=None, help="Model of --refiner openai or transformers.")
    group.add_argument(
        "--refiner_base_url", default=None, help="Address of an OpenAI-compatible service, e.g. of vLLM or Ollama."
    )
    group.add_argument(
        "--refiner_api_key_env",
        default=None,
        help="Environment variable with that service's key; default: DASHSCOPE_API_KEY or OPENAI_API_KEY.",
    )
    group.add_argument("--num_refinements", type=int, default=4, help="Refinements per prompt.")
    group.add_argument("--num_seeds", type=int, default=1, help="Images per refinement.")


def add_generation_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--resolution", type=int, default=None, help="Pixels; default: the pipeline's own.")
    group.add_argument("--num_inference_steps", type=int, default=30, help="Denoising steps.")
    group.add_argument("--guidance_scale", type=float, default=None, help="Default: the pipeline's own.")
    group.add_argument("--generation_batch_size", type=int, default=8, help="Images generated together, at most 64.")
    group.add_argument("--save_latents", action="store_true", help="Keep the generated latents in the dataset.")


def add_selection_arguments(group: argparse._ArgumentGroup) -> None:
    defaults = ["hps_v2.1=0.4", "pickscore=0.4", "aesthetic=0.2"]
    add_reward_arguments(group, defaults, embedded="A tiny-* model brings its own.")
    group.add_argument(
        "--reward_normalization", default="zscore", help="How rewards become comparable: zscore, minmax or rank."
    )
    group.add_argument(
        "--filter_rule",
        nargs="+",
        default=["hpa"],
        metavar="RULE",
        help="On which rewards one refined image must beat the original prompt's: h, p, a, ha, pa, hpa, none, or names.",
    )
    group.add_argument("--selection", default="top", help="Which of the kept images: top, random, low or all.")
    group.add_argument("--num_samples", type=int, default=100, help="Images to select.")
    group.add_argument("--max_per_prompt", type=int, default=1, help="Most images per prompt; 0 is no limit.")


def add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output_dir", required=True, help="The work folder; holds dataset/ and report/ at the end.")
    group.add_argument("--seed", type=int, default=0, help="Seed of everything random.")
    group.add_argument(
        "--push_to_hub",
        action="store_true",
        help="Publish the dataset as --hub_dataset_id, with HF_TOKEN or the login.",
    )
    group.add_argument("--hub_dataset_id", default=None, help="ORG/NAME of the dataset on the Hub.")
    group.add_argument("--hub_private_repo", action="store_true", help="Make the repository private.")
    group.add_argument("--hub_revision", default=None, help="Branch to push to.")
    group.add_argument("--hub_license", default=None, help="Licence of the dataset for its card, e.g. openrail++.")


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("diffusers_craft").setLevel(logging.INFO)

    # What the user typed is checked before a model is loaded.
    args.output_dir = str(probe_folder(args.output_dir, make=False))
    rewards = parse_reward_weights(args.rewards)
    scoring = RewardSettings.from_args(args, list(rewards))
    settings = GenerationSettings(
        resolution=args.resolution,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        batch_size=args.generation_batch_size,
    )
    where = {"private": args.hub_private_repo or None, "revision": args.hub_revision}
    if args.push_to_hub and is_first_rank():
        HubRepo(args.hub_dataset_id, "dataset", **where, license=args.hub_license).open()
    prompts = load_build_prompts(args.prompts, args.prompt_column, args.num_prompts, args.seed)
    refiner = load_refiner(
        args.refiner,
        model=args.refiner_model,
        base_url=args.refiner_base_url,
        api_key_env=args.refiner_api_key_env,
    )
    device = args.device or default_device()
    dtype = torch_dtype("fp32" if device == "cpu" else args.dtype)
    vae = args.pretrained_vae_model_name_or_path
    check_single_file_config(args.pretrained_model_name_or_path, args.single_file_config)
    pipeline = load_pipeline(
        args.pretrained_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        dtype=dtype,
        device=device,
        cache_dir=args.cache_dir,
        config=args.single_file_config,
        **({"vae": load_vae(vae, args.cache_dir).to(dtype)} if vae else {}),
    )

    builder = CRAFTDatasetBuilder(
        pipeline,
        rewards,
        refiner=refiner,
        filter_rule=args.filter_rule[0] if len(args.filter_rule) == 1 else args.filter_rule,
        reward_normalization=args.reward_normalization,
        num_refinements=args.num_refinements,
        num_seeds=args.num_seeds,
        selection=args.selection,
        num_samples=args.num_samples,
        max_per_prompt=args.max_per_prompt,
        settings=settings,
        save_latents=args.save_latents,
        reward_settings=scoring,
        output_dir=args.output_dir,
        seed=args.seed,
    )
    builder.build(prompts.prompts, run_options=vars(args), categories=prompts.categories)
    if is_first_rank():
        print(format_funnel(builder.funnel))
    if args.push_to_hub:
        builder.push_to_hub(args.hub_dataset_id, license=args.hub_license, **where)


if __name__ == "__main__":
    run_script(main, parse_args())
