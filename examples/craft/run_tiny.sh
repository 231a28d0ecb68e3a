#!/usr/bin/env bash
# CRAFT from prompts to a comparison, every stage, on the embedded tiny world: no GPU, no network, minutes.
# The stages for a real model are the same; see README.md.
#
#   MODEL=tiny-sdxl SEED=1 OUT=outputs/other bash examples/craft/run_tiny.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python}
MODEL=${MODEL:-tiny-sd15}
SEED=${SEED:-0}
OUT=${OUT:-outputs/demo}
TRAIN=examples/craft/train_craft_${MODEL#tiny-}.py
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false

# prompts -> refine -> generate -> score -> filter -> dataset
"$PYTHON" examples/craft/build_craft_dataset.py \
  --pretrained_model_name_or_path "$MODEL" \
  --prompts tiny-train --num_prompts 600 \
  --refiner template --num_refinements 4 \
  --num_inference_steps 12 --guidance_scale 3 --generation_batch_size 32 \
  --rewards hps_v2.1=0.4 pickscore=0.4 aesthetic=0.2 \
  --filter_rule hpa --num_samples 100 \
  --seed "$SEED" --output_dir "$OUT/dataset"

# dataset -> pipeline: CRAFT, and plain fine-tuning (SFT) on the very same images
for loss in craft sft; do
  "$PYTHON" "$TRAIN" \
    --pretrained_model_name_or_path "$MODEL" \
    --dataset_name "$OUT/dataset" --loss $loss \
    --resolution 64 --train_batch_size 64 --gradient_accumulation_steps 1 --max_train_steps 150 --learning_rate 1e-4 \
    --seed "$SEED" --output_dir "$OUT/$loss" --resume_from_checkpoint latest
done

# pipelines -> tables, alarms, report.html, grid; the prompts are in no training set
"$PYTHON" examples/craft/evaluate_craft.py \
  --base base="$MODEL" --tuned "$OUT/sft" "$OUT/craft" \
  --prompts tiny-heldout --num_prompts 300 \
  --rewards hps_v2.1 pickscore aesthetic \
  --num_inference_steps 12 --guidance_scale 2 --batch_size 50 \
  --seed "$SEED" --output_dir "$OUT/evaluation"
