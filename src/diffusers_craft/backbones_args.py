# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags that say where a base model's files come from, for every script that loads one."""

import argparse


def add_source_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declares `--revision`, `--variant`, `--single_file_config` and `--cache_dir`, which `load_pipeline` takes."""
    parser.add_argument("--revision", help="Branch, tag or commit of the model on the Hub.")
    parser.add_argument("--variant", help="Variant of the model files, e.g. fp16.")
    parser.add_argument(
        "--single_file_config",
        help="For a single .safetensors file: folder or Hub id of a pipeline with its configuration and"
        " tokenizers; the default is the original model's id, which diffusers infers.",
    )
    parser.add_argument("--cache_dir", help="Where downloads and caches are kept; default: HF_HOME.")
