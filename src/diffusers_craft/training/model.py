# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The trained denoiser with what moves it: optimizer, schedule, and averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from .checkpoints import keep_denoiser_in_checkpoints
from .optimizer import create_optimizer
from .settings import TrainingSettings
from .weights import FullWeights, LoraWeights, compile_blocks, whole_denoiser


class TrainedModel:
    """A denoiser as accelerate has prepared it, in the precision, layout and kernels that the settings ask for.

    Args:
        denoiser (`ModelMixin`): of the base; changed in place.
        settings (`TrainingSettings`): of the run.
        weights (`FullWeights` or `LoraWeights`): what of it is trained.
        accelerator (`Accelerator`): from `create_accelerator`.
        learning_rate (`float`): after `--scale_lr`.
        max_train_steps (`int`): where the schedule ends.

    Attributes:
        dtype (`torch.dtype`): of the passes.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        settings: TrainingSettings,
        weights: FullWeights | LoraWeights,
        accelerator: Accelerator,
        learning_rate: float,
        max_train_steps: int,
    ) -> None:
        self.settings, self.weights, self.accelerator = settings, weights, accelerator
        precisions = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = precisions.get(accelerator.mixed_precision, torch.float32)
        weights.prepare(denoiser, self.dtype)
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
        keep_denoiser_in_checkpoints(accelerator, self.ema, weights)

    def place(self, denoiser: ModelMixin) -> None:
        """Device, layout and kernels, of a reference too."""
        layout = torch.channels_last if self.settings.channels_last else torch.preserve_format
        denoiser.to(self.accelerator.device, memory_format=layout)
        if self.settings.torch_compile:
            compile_blocks(denoiser)

    def update(self) -> tuple[torch.Tensor, float]:
        """Clips the gradients and makes an optimizer step; returns their norm and the learning rate."""
        grad_norm = self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.settings.max_grad_norm)
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.denoiser.parameters())
        return grad_norm, learning_rate

    @contextmanager
    def result(self, keep_autocast: bool = True) -> Iterator[ModelMixin | None]:
        """The whole denoiser as it would be saved now, averaged where averages are kept; all processes must ask for it.

        Only the main one gets it, and goes on with its weights as they were.
        """
        denoiser = whole_denoiser(self.accelerator, self.denoiser, keep_autocast)
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
