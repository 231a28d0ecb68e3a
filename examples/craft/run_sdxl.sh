#!/usr/bin/env bash
# CRAFT on SDXL with the paper's settings: every stage of run_sd15.sh, which says what can be set, with 1024 px, 200 steps
# (defaults of the SDXL script) and what fits an 80 GB card.
set -euo pipefail

export MODEL=${MODEL:-stabilityai/stable-diffusion-xl-base-1.0}
export TRAIN=examples/craft/train_craft_sdxl.py
export OUT=${OUT:-outputs/sdxl}
export BATCH=${BATCH:-8}
export TRAIN_FLAGS=${TRAIN_FLAGS:---mixed_precision bf16 --gradient_checkpointing}
exec bash "$(dirname "$0")/run_sd15.sh"
