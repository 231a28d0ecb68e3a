#!/usr/bin/env bash
# SDXL on two machines of eight GPUs each: sbatch slurm_train.sh [flags of train_craft_sdxl.py]
# A job that is cut off goes on where it was when it is submitted again: SIGTERM, ten minutes before the end, leaves a
# checkpoint.
#SBATCH --job-name=craft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@600
set -euo pipefail

HERE=${SLURM_SUBMIT_DIR:-$(dirname "$0")}
GPUS=${SLURM_GPUS_ON_NODE:-8}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540  # of torch's launcher (newer ones read it), which else waits 30 s and kills
export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# $SLURM_NODEID differs from machine to machine, so that it is left for srun's shells to fill in.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
  --config_file "$1/accelerate_configs/multi_node.yaml" \
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * $2))" \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" \
  "$1/train_craft_sdxl.py" "${@:3}"' _ "$HERE" "$GPUS" \
  --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \
  --dataset_name outputs/top100-sdxl --output_dir outputs/craft-sdxl \
  --train_batch_size 8 --gradient_accumulation_steps 1 \
  --checkpointing_steps 50 --resume_from_checkpoint latest \
  "$@"
