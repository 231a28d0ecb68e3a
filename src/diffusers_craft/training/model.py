# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The trained denoiser: what of it is trained and kept (all, or LoRA adapters, arXiv 2106.09685), and what moves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from safetensors.torch import load_file

from ..core.files import atomic_write_bytes, with_sorted_metadata
from ..core.records import derive_seed
from ..errors import UserError
from ..models.family import Family
from ..models.loading import LORA_FILE, dtype_argument
from .optimizer import create_optimizer
from .settings import TrainingSettings


class FullWeights:
    """The whole denoiser is trained in `dtype`: its folder in a checkpoint, a whole pipeline at the end."""

    def __init__(self, component: str, dtype: torch.dtype) -> None:
        self.component, self.dtype = component, dtype
        self.need_autocast = dtype != torch.float32  # to draw images with a pipeline whose other parts are float32

    def prepare(self, denoiser: ModelMixin, dtype: torch.dtype) -> None:
        """Makes every parameter trainable; the passes' `dtype` does not change the weights'."""
        denoiser.requires_grad_(True).to(self.dtype)

    def save(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Writes what a checkpoint needs."""
        denoiser.save_pretrained(Path(folder) / self.component)

    def load(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        options = {"subfolder": self.component, **dtype_argument(self.dtype)}
        denoiser.load_state_dict(type(denoiser).from_pretrained(folder, **options).state_dict())

    def save_rest(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Writes the base's other parts after `save`, at the end of a run: with them `from_pretrained` loads the folder."""
        for name, part in pipeline.components.items():
            if name != self.component and part is not None:
                part.save_pretrained(Path(folder) / name)
        pipeline.save_config(folder)


class LoraWeights:
    """Low-rank adapters of all attention projections are trained; one file in a checkpoint and at the end."""

    need_autocast = True  # the frozen denoiser has the passes' precision

    def __init__(self, settings: TrainingSettings, family: Family) -> None:
        if find_spec("peft") is None:
            raise UserError("--use_lora: expected an installed peft, found none (pip install diffusers-craft[lora])")
        self.settings, self.component, self.targets = settings, family.component, list(family.lora_targets)
        self.pipeline_class = getattr(diffusers, family.pipeline_class)

    def prepare(self, denoiser: ModelMixin, dtype: torch.dtype) -> None:
        """Freezes the denoiser in `dtype` and adds float32 adapters, drawn from the run's seed; they start as nothing."""
        from peft import LoraConfig

        rank, alpha = self.settings.rank, self.settings.lora_alpha
        options = {"lora_alpha": rank if alpha is None else alpha, "lora_dropout": self.settings.lora_dropout}
        config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=self.targets, **options)
        denoiser.requires_grad_(False).to(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.settings.seed, "lora"))
            denoiser.add_adapter(config)
        cast_training_params(denoiser, dtype=torch.float32)

    def save(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Writes the adapters; the file's metadata hold rank and alpha, so that loading scales them alike."""
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
        named = {f"{self.component}_lora_layers": layers}
        about = denoiser.peft_config["default"].to_dict()
        about = {name: sorted(value) if isinstance(value, set) else value for name, value in about.items()}
        named[f"{self.component}_lora_adapter_metadata"] = about  # in one order, as below: equal runs, equal bytes
        self.pipeline_class.save_lora_weights(save_directory=str(folder), **named)
        file = Path(folder) / LORA_FILE
        atomic_write_bytes(file, with_sorted_metadata(file.read_bytes()))

    def load(self, denoiser: ModelMixin, folder: str | Path) -> None:
        """Reads what `save` wrote."""
        from peft.utils import set_peft_model_state_dict

        prefix = f"{self.component}."
        saved = {name.removeprefix(prefix): value for name, value in load_file(Path(folder) / LORA_FILE).items()}
        set_peft_model_state_dict(denoiser, convert_unet_state_dict_to_peft(saved))

    def save_rest(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Nothing: the one file is what `load_lora_weights` loads into the base pipeline."""


def trained_weights(settings: TrainingSettings, family: Family) -> FullWeights | LoraWeights:
    """What `--use_lora` and `--train_dtype` ask for."""
    if settings.use_lora:
        return LoraWeights(settings, family)
    return FullWeights(family.component, torch.bfloat16 if settings.train_dtype == "bf16" else torch.float32)


class TrainedModel:
    """A base's denoiser, changed in place and prepared by accelerate, with optimizer, schedule and averaged weights.

    `learning_rate` is that after `--scale_lr`; `dtype` is that of the passes.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        settings: TrainingSettings,
        family: Family,
        accelerator: Accelerator,
        learning_rate: float,
        max_train_steps: int,
    ) -> None:
        self.settings, self.accelerator, self.weights = settings, accelerator, trained_weights(settings, family)
        precisions = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = precisions.get(accelerator.mixed_precision, torch.float32)
        self.weights.prepare(denoiser, self.dtype)
        self.place(denoiser)
        denoiser.train()
        if settings.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        optimizer = create_optimizer(denoiser.parameters(), settings, learning_rate)
        warmup = {"num_warmup_steps": settings.lr_warmup_steps, "num_training_steps": max_train_steps}
        lr_scheduler = get_scheduler(settings.lr_scheduler, optimizer=optimizer, **warmup)
        self.ema: EMAModel | None = None
        if settings.use_ema:
            about = {"model_cls": type(denoiser), "model_config": denoiser.config}
            self.ema = EMAModel(denoiser.parameters(), foreach=True, **about)
            self.ema.to(accelerator.device)
        self.denoiser, self.optimizer, self.lr_scheduler = accelerator.prepare(denoiser, optimizer, lr_scheduler)
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def sizes(self) -> tuple[int, int]:
        """Bytes of what is trained as `FullWeights.save` writes it, and of a checkpoint with averages and optimizer."""
        trained = [value for value in self.denoiser.parameters() if value.requires_grad]
        weights = sum(value.numel() * value.element_size() for value in trained)
        state = 2 if self.settings.use_8bit_adam or self.settings.use_adafactor else 8
        return weights, weights * (1 + self.settings.use_ema) + state * sum(value.numel() for value in trained)

    def place(self, denoiser: ModelMixin) -> None:
        """Device, layout and kernels, of a reference too; names of weights stay as they are."""
        layout = torch.channels_last if self.settings.channels_last else torch.preserve_format
        denoiser.to(self.accelerator.device, memory_format=layout)
        if not self.settings.torch_compile:
            return
        # Widths and resolutions of one model, in training and in validation: more variants than the default allows.
        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        repeated = getattr(denoiser, "_repeated_blocks", None) or ["BasicTransformerBlock"]
        for module in denoiser.modules():
            if type(module).__name__ in repeated:
                module.compile(dynamic=False)

    def update(self) -> tuple[torch.Tensor, float]:
        """Clips the gradients and makes an optimizer step; returns their norm and the learning rate."""
        grad_norm = self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.settings.max_grad_norm)
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.denoiser.parameters())
        if hasattr(grad_norm, "full_tensor"):  # FSDP shares it between the processes
            grad_norm = grad_norm.full_tensor()
        return torch.as_tensor(grad_norm), learning_rate

    @contextmanager
    def result(self, keep_autocast: bool = True) -> Iterator[ModelMixin | None]:
        """The whole denoiser as it would be saved now, averaged where averages are kept; all processes must ask for it.

        Only the main one gets it, and goes on with its weights as they were.
        """
        denoiser = self._whole(self.denoiser, keep_autocast)
        if not self.accelerator.is_main_process:
            yield None
            return
        denoiser.eval()
        if self.ema is not None:
            self.ema.store(denoiser.parameters())
            self.ema.copy_to(denoiser.parameters())
        yield denoiser
        if self.ema is not None:
            self.ema.restore(denoiser.parameters())
        denoiser.train()

    def _whole(self, model: torch.nn.Module, keep_autocast: bool = True) -> ModelMixin | None:
        """The denoiser with all of its weights; where processes share them, all must call this, only the main gets it."""
        accelerator = self.accelerator
        if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return accelerator.unwrap_model(model, keep_fp32_wrapper=keep_autocast)
        own, weights = accelerator.unwrap_model(model), accelerator.get_state_dict(model)
        if not accelerator.is_main_process:
            return None
        with torch.device("meta"):
            denoiser = type(own).from_config(own.config)
        denoiser.to_empty(device="cpu").load_state_dict(weights)  # float32, whatever the shared weights are
        return denoiser

    def _save(self, models: list, state_dicts: list, folder: str) -> None:
        """Makes accelerate's `save_state` write the weights and their averages as diffusers' files."""
        for model in models:
            denoiser = self._whole(model)
            if self.accelerator.is_main_process:
                self.weights.save(denoiser, folder)
        if self.ema is not None and self.accelerator.is_main_process:
            self.ema.save_pretrained(Path(folder) / f"{self.weights.component}_ema")
        state_dicts.clear()  # tells accelerate that they are saved

    def _load(self, models: list, folder: str) -> None:
        """Makes accelerate's `load_state` read them."""
        while models:  # an emptied list tells accelerate that they are loaded
            self.weights.load(self.accelerator.unwrap_model(models.pop()), folder)
        if self.ema is not None:
            path = Path(folder) / f"{self.weights.component}_ema"
            if not path.is_dir():
                raise UserError(f"--use_ema: expected a checkpoint with {path.name}/, found none in {folder}")
            self.ema.load_state_dict(EMAModel.from_pretrained(path, self.ema.model_cls).state_dict())
            self.ema.to(self.accelerator.device)
