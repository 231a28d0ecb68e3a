# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What of a denoiser is trained, and how it is kept: all of it, or LoRA adapters (arXiv 2106.09685) through peft.

The denoiser is a pipeline's UNet or transformer; its `component` name is that of its folder and of its LoRA weights.
"""

from importlib.util import find_spec
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from safetensors.torch import load_file

from ..core.records import derive_seed
from ..errors import UserError
from ..models.family import Family
from ..models.loading import LORA_FILE, dtype_argument
from .settings import TrainingSettings


class FullWeights:
    """The whole denoiser is trained: its folder in a checkpoint, a whole pipeline at the end.

    Args:
        component (`str`): name of the denoiser in its pipeline.
        dtype (`torch.dtype`): of the weights, whatever the precision of the passes.
    """

    def __init__(self, component: str = "unet", dtype: torch.dtype = torch.float32) -> None:
        self.component, self.dtype = component, dtype
        self.need_autocast = dtype != torch.float32  # to draw images with a pipeline whose other parts are float32

    def prepare(self, denoiser: ModelMixin, dtype: torch.dtype) -> None:
        """Makes every parameter trainable; the passes' `dtype` does not change the weights'."""
        denoiser.requires_grad_(True)
        if denoiser.dtype != self.dtype:
            denoiser.to(self.dtype)

    def save(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Writes what a checkpoint needs into `folder`."""
        denoiser.save_pretrained(Path(folder) / self.component)

    def load(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        options = {"subfolder": self.component, **dtype_argument(self.dtype)}
        denoiser.load_state_dict(type(denoiser).from_pretrained(folder, **options).state_dict())

    def save_result(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Writes the end of a run: what `from_pretrained` loads."""
        pipeline.save_pretrained(folder)


class LoraWeights:
    """Low-rank adapters of all attention projections are trained; one file in a checkpoint and at the end.

    Args:
        settings (`TrainingSettings`): `rank`, `lora_alpha`, `lora_dropout`, `seed`.
        family (`Family`): whose pipeline will load the file.
    """

    need_autocast = True  # the frozen denoiser has the passes' precision

    def __init__(self, settings: TrainingSettings, family: Family) -> None:
        if find_spec("peft") is None:
            raise UserError("--use_lora: expected an installed peft, found none (pip install diffusers-craft[lora])")
        self.rank, self.dropout, self.seed = settings.rank, settings.lora_dropout, settings.seed
        self.alpha = settings.rank if settings.lora_alpha is None else settings.lora_alpha
        self.component, self.targets = family.component, list(family.lora_targets)
        self.pipeline_class = getattr(diffusers, family.pipeline_class)

    def prepare(self, denoiser: ModelMixin, dtype: torch.dtype) -> None:
        """Freezes the denoiser in `dtype` and adds float32 adapters, drawn from the run's seed; they start as nothing."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            init_lora_weights="gaussian",
            target_modules=self.targets,
        )
        denoiser.requires_grad_(False).to(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "lora"))
            denoiser.add_adapter(config)
        cast_training_params(denoiser, dtype=torch.float32)

    def save(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Writes the adapters; the file's metadata hold rank and alpha, so that loading scales them alike."""
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
        named = {f"{self.component}_lora_layers": layers}
        named[f"{self.component}_lora_adapter_metadata"] = denoiser.peft_config["default"].to_dict()
        self.pipeline_class.save_lora_weights(save_directory=str(folder), **named)

    def load(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        from peft.utils import set_peft_model_state_dict

        prefix = f"{self.component}."
        saved = {name.removeprefix(prefix): value for name, value in load_file(Path(folder) / LORA_FILE).items()}
        set_peft_model_state_dict(denoiser, convert_unet_state_dict_to_peft(saved))

    def save_result(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Writes the end of a run: what `load_lora_weights` loads into the base pipeline."""
        self.save(getattr(pipeline, self.component), folder)


def trained_weights(settings: TrainingSettings, family: Family) -> FullWeights | LoraWeights:
    """What `--use_lora` and `--train_dtype` ask for."""
    if settings.use_lora:
        return LoraWeights(settings, family)
    return FullWeights(family.component, torch.bfloat16 if settings.train_dtype == "bf16" else torch.float32)


def whole_denoiser(accelerator: Accelerator, model: torch.nn.Module, keep_autocast: bool = True) -> ModelMixin | None:
    """The denoiser with all of its weights; where processes share them, all must call this, and only the main one gets it.

    Args:
        accelerator (`Accelerator`): has prepared `model`.
        model (`torch.nn.Module`): the denoiser as prepared.
        keep_autocast (`bool`, *optional*, defaults to `True`): keep the wrapper that runs it in mixed precision.
    """
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return accelerator.unwrap_model(model, keep_fp32_wrapper=keep_autocast)
    own, weights = accelerator.unwrap_model(model), accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    with torch.device("meta"):
        denoiser = type(own).from_config(own.config)
    denoiser.to_empty(device="cpu").load_state_dict(weights)  # float32, whatever the shared weights are
    return denoiser


def compile_blocks(denoiser: ModelMixin) -> None:
    """Compiles every transformer block in place, one graph for all of a shape; names of weights stay as they are."""
    # Widths and resolutions of one model, in training and in validation: more variants than the default allows.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    repeated = getattr(denoiser, "_repeated_blocks", None) or ["BasicTransformerBlock"]
    for module in denoiser.modules():
        if type(module).__name__ in repeated:
            module.compile(dynamic=False)
