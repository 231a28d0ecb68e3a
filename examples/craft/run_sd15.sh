#!/usr/bin/env bash
# CRAFT on Stable Diffusion 1.5 with the paper's settings, every stage, top to bottom; run_sdxl.sh is the same for SDXL.
# What no flag says is a default of the scripts, and those are the paper's recipe: 4 refinements, rewards 0.4 / 0.4 / 0.2,
# filter hpa, Top-100, 120 steps at 5e-5. A killed run goes on where it was.
#
#   DASHSCOPE_API_KEY=... NUM_PROCESSES=8 bash examples/craft/run_sd15.sh
#   HUB_ID=org/craft-sd15 ...   # publishes the model, and the dataset as org/craft-sd15-data
#   NUM_PROMPTS=1000 REFINER="template" OUT=outputs/small bash examples/craft/run_sd15.sh   # no LLM, a tenth of the work
#   BATCH=2 TRAIN_FLAGS="--mixed_precision bf16 --gradient_checkpointing --use_lora --learning_rate 1e-4" ...   # 12 GB
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python}
MODEL=${MODEL:-stable-diffusion-v1-5/stable-diffusion-v1-5}
TRAIN=${TRAIN:-examples/craft/train_craft_sd15.py}
SEED=${SEED:-0}
OUT=${OUT:-outputs/sd15}
NUM_PROMPTS=${NUM_PROMPTS:-10000}
REFINER=${REFINER:-openai --refiner_model qwen-plus}
NUM_PROCESSES=${NUM_PROCESSES:-1} # GPUs
BATCH=${BATCH:-16}                # images a GPU and pass
TRAIN_FLAGS=${TRAIN_FLAGS:---mixed_precision bf16}
EVALUATION=${EVALUATION:-hpdv2 partiprompts pickapic}
LAUNCH=("$PYTHON" -m accelerate.commands.launch --num_processes "$NUM_PROCESSES")

ACCUMULATION=$((128 / (BATCH * NUM_PROCESSES)))
if ((ACCUMULATION * BATCH * NUM_PROCESSES != 128)); then
  echo "BATCH x NUM_PROCESSES: expected a divisor of 128, found $BATCH x $NUM_PROCESSES" >&2
  exit 2
fi

# the training prompts of HPDv2; PROMPTS=FILE_OR_HUB_ID names others
if [[ -z ${PROMPTS:-} ]]; then
  FETCH='from huggingface_hub import hf_hub_download as get; print(get("ymhao/HPDv2", "train.json", repo_type="dataset"))'
  PROMPTS=$("$PYTHON" -c "$FETCH")
fi

# prompts -> refine -> generate -> score -> filter -> dataset
"${LAUNCH[@]}" examples/craft/build_craft_dataset.py \
  --pretrained_model_name_or_path "$MODEL" \
  --prompts "$PROMPTS" --num_prompts "$NUM_PROMPTS" \
  --refiner $REFINER \
  --seed "$SEED" --output_dir "$OUT/dataset"

# dataset -> pipeline
"${LAUNCH[@]}" "$TRAIN" \
  --pretrained_model_name_or_path "$MODEL" --dataset_name "$OUT/dataset" \
  --train_batch_size "$BATCH" --gradient_accumulation_steps "$ACCUMULATION" $TRAIN_FLAGS \
  --checkpointing_steps 40 --resume_from_checkpoint latest \
  --seed "$SEED" --output_dir "$OUT/craft"

# base and tuned -> table, grid; ImageReward is unseen in training
"${LAUNCH[@]}" examples/craft/evaluate_craft.py \
  --base base="$MODEL" --tuned craft="$OUT/craft" \
  --prompts $EVALUATION \
  --rewards hps_v2.1 aesthetic image_reward \
  --seed "$SEED" --output_dir "$OUT/evaluation"

# pipeline, dataset -> Hub
if [[ -n ${HUB_ID:-} ]]; then
  PUBLISH=("$PYTHON" examples/craft/publish_craft.py)
  "${PUBLISH[@]}" --output_dir "$OUT/dataset" --hub_dataset_id "$HUB_ID-data"
  "${PUBLISH[@]}" --output_dir "$OUT/craft" --hub_model_id "$HUB_ID" --evaluation_dir "$OUT/evaluation"
fi
