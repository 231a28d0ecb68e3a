# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Accelerate's environment for a run: precision, tracker, and what DeepSpeed and FSDP can and cannot do here."""

import logging
import os
from dataclasses import fields, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration

from ..core.output import probe_folder
from ..errors import UserError
from .settings import TrainingSettings


logger = logging.getLogger(__name__)

# Of processes that wait while the main one encodes, saves or uploads: NCCL's default, ten minutes, would end them.
_PATIENCE = timedelta(days=1)


def create_accelerator(settings: TrainingSettings) -> Accelerator:
    """Accelerate's environment with the flags' precision, accumulation and tracker; only the main process logs.

    Whether the output folder can be written is known before anything is loaded.
    """
    probe_folder(settings.output_dir)
    tracker = settings.report_to or ("tensorboard" if find_spec("tensorboard") else "none")
    if tracker != "none" and find_spec(tracker) is None:
        fix = f"`pip install {tracker}` or --report_to none"
        raise UserError(f"--report_to: expected an installed tracker, found {tracker}, which is not ({fix})")
    without_gpu = not (torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available())
    precision = settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and without_gpu:
        given = "--mixed_precision" if settings.mixed_precision else "accelerate's configuration, mixed_precision"
        raise UserError(f"{given}: expected bf16 or no without a GPU, found fp16")
    if settings.train_dtype == "bf16" and precision != "bf16":
        raise UserError(f"--train_dtype bf16: expected --mixed_precision bf16 with it, found {precision}")
    logging_dir = str(Path(settings.output_dir) / settings.logging_dir)
    several_on_cpus = without_gpu and int(os.environ.get("WORLD_SIZE", 1)) > 1
    accelerator = Accelerator(
        cpu=several_on_cpus,  # else accelerate overlooks what torchrun starts without a GPU
        mixed_precision=settings.mixed_precision,
        # A plugin, since an environment variable of `accelerate launch` would overrule a number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.gradient_accumulation_steps),
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(str(settings.output_dir), logging_dir=logging_dir),
        step_scheduler_with_optimizer=False,  # the schedule counts optimizer steps, whatever the processes
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    _prepare_sharding(accelerator, settings)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it reports every file of a checkpoint
    if not accelerator.is_local_main_process:
        logging.getLogger("diffusers_craft").setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.allow_tf32
    return accelerator


def _prepare_sharding(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """DeepSpeed takes its numbers from the flags; what needs whole weights in every process is refused."""
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        for kind in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
                logger.warning("%s was asked for, but accelerate sets it up on several GPUs only: not sharded.", kind)
        return
    needs_whole_weights = {"--use_lora": settings.use_lora, "--use_ema": settings.use_ema}
    needs_whole_weights["--train_dtype bf16"] = settings.train_dtype == "bf16"
    for flag, given in needs_whole_weights.items():
        if given:
            found = accelerator.distributed_type.value
            raise UserError(f"{flag}: expected one process or DDP, which keep the weights whole, found {found}")
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.mixed_precision_policy is not None:
            # FSDP would cast sizes to bfloat16, which turns 1023 into 1024; all else has its dtype already.
            names = [field.name for field in fields(plugin.mixed_precision_policy)]
            changes = {name: False for name in names if name.startswith("cast_")} | {"reduce_dtype": torch.float32}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **changes)
    else:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": settings.train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "gradient_clipping": settings.max_grad_norm,
            "zero_allow_untested_optimizer": True,  # 8-bit Adam, Adafactor
        }
