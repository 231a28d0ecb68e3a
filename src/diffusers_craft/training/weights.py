# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What of a UNet is trained, and how it is kept: all of it, or LoRA adapters (arXiv 2106.09685) through peft."""

from importlib.util import find_spec
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from safetensors.torch import load_file

from ..core.records import derive_seed
from ..errors import UserError
from ..models.loading import LORA_FILE, dtype_argument
from .settings import TrainingSettings


LORA_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # every attention, as in diffusers' LoRA scripts


class FullWeights:
    """The whole UNet is trained: `unet/` in a checkpoint, a whole pipeline at the end.

    Args:
        dtype (`torch.dtype`): of the weights, whatever the precision of the passes.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.need_autocast = dtype != torch.float32  # to draw images with a pipeline whose other parts are float32

    def prepare(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
        """Makes every parameter trainable; the passes' `dtype` does not change the weights'."""
        unet.requires_grad_(True)
        if unet.dtype != self.dtype:
            unet.to(self.dtype)

    def save(self, unet: UNet2DConditionModel, folder: str | Path) -> None:
        """Writes what a checkpoint needs into `folder`."""
        unet.save_pretrained(Path(folder) / "unet")

    def load(self, unet: UNet2DConditionModel, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        loaded = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **dtype_argument(self.dtype))
        unet.load_state_dict(loaded.state_dict())

    def save_result(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Writes the end of a run: what `from_pretrained` loads."""
        pipeline.save_pretrained(folder)


class LoraWeights:
    """Low-rank adapters of all attention projections are trained; one file in a checkpoint and at the end.

    Args:
        settings (`TrainingSettings`): `rank`, `lora_alpha`, `lora_dropout`, `seed`.
        pipeline_class (`str`): name of the diffusers pipeline class that will load the file.
    """

    need_autocast = True  # the frozen UNet has the passes' precision

    def __init__(self, settings: TrainingSettings, pipeline_class: str) -> None:
        if find_spec("peft") is None:
            raise UserError("--use_lora: expected an installed peft, found none (pip install diffusers-craft[lora])")
        self.rank, self.dropout, self.seed = settings.rank, settings.lora_dropout, settings.seed
        self.alpha = settings.rank if settings.lora_alpha is None else settings.lora_alpha
        self.pipeline_class = getattr(diffusers, pipeline_class)

    def prepare(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
        """Freezes the UNet in `dtype` and adds float32 adapters, drawn from the run's seed; they start as nothing."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            init_lora_weights="gaussian",
            target_modules=LORA_TARGETS,
        )
        unet.requires_grad_(False).to(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "lora"))
            unet.add_adapter(config)
        cast_training_params(unet, dtype=torch.float32)

    def save(self, unet: UNet2DConditionModel, folder: str | Path) -> None:
        """Writes the adapters; the file's metadata hold rank and alpha, so that loading scales them alike."""
        from peft.utils import get_peft_model_state_dict

        self.pipeline_class.save_lora_weights(
            save_directory=str(folder),
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )

    def load(self, unet: UNet2DConditionModel, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        from peft.utils import set_peft_model_state_dict

        saved = {name.removeprefix("unet."): value for name, value in load_file(Path(folder) / LORA_FILE).items()}
        set_peft_model_state_dict(unet, convert_unet_state_dict_to_peft(saved))

    def save_result(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Writes the end of a run: what `load_lora_weights` loads into the base pipeline."""
        self.save(pipeline.unet, folder)


def trained_weights(settings: TrainingSettings, pipeline_class: str) -> FullWeights | LoraWeights:
    """What `--use_lora` and `--train_dtype` ask for."""
    if settings.use_lora:
        return LoraWeights(settings, pipeline_class)
    return FullWeights(torch.bfloat16 if settings.train_dtype == "bf16" else torch.float32)


def whole_unet(
    accelerator: Accelerator, model: torch.nn.Module, keep_autocast: bool = True
) -> UNet2DConditionModel | None:
    """The UNet with all of its weights; where processes share them, all must call this, and only the main one gets it.

    Args:
        accelerator (`Accelerator`): has prepared `model`.
        model (`torch.nn.Module`): the UNet as prepared.
        keep_autocast (`bool`, *optional*, defaults to `True`): keep the wrapper that runs it in mixed precision.
    """
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return accelerator.unwrap_model(model, keep_fp32_wrapper=keep_autocast)
    config, weights = accelerator.unwrap_model(model).config, accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet.to_empty(device="cpu").load_state_dict(weights)  # float32, whatever the shared weights are
    return unet


def compile_blocks(unet: UNet2DConditionModel) -> None:
    """Compiles every transformer block in place, one graph for all of a shape; names of weights stay as they are."""
    # Widths and resolutions of one UNet, in training and in validation: more variants than the default allows.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.compile(dynamic=False)
