# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What objectives reach for while they prepare a batch: both models, the noise levels, rewards, and seeded numbers."""

import copy
from argparse import Namespace
from typing import Any

import torch
from accelerate.utils import DistributedType
from PIL import Image

from ..core.records import derive_seed
from ..errors import UserError
from ..models.families import Backbone, Components
from ..models.latents import decode
from ..objectives.base import Batch, Objective
from ..scoring.scorer import CompositeScorer
from .run import TrainingRun
from .weights import compile_blocks


class AlignmentContext:
    """The `Context` of `objectives.base` for one training run; made before the run, which changes the UNet.

    The reference is the UNet as it is now: a frozen copy in the same precision, or, with LoRA, the trained UNet with its
    adapters switched off, which costs no memory.

    Args:
        objective (`Objective`): says what is needed.
        args (`argparse.Namespace`): flags of the training script.
        backbone (`Backbone`): family of the UNet.
        components (`Components`): of the base; the VAE is kept here if images are scored.
        scorer (`CompositeScorer`, *optional*): scores images.

    Raises:
        UserError: if the objective needs a reward or noise predictions and there are none.
    """

    def __init__(
        self,
        objective: Objective,
        args: Namespace,
        backbone: Backbone,
        components: Components,
        scorer: CompositeScorer | None = None,
    ) -> None:
        path = components.path
        if type(objective).prepare is not Objective.prepare and path.kind == "epsilon" and path.ends_without_signal:
            wanted = f"expected v_prediction or sample for {type(objective).__name__} with zero terminal SNR"
            raise UserError(f"--prediction_type: {wanted}, where noise says nothing of the image, found epsilon")
        if objective.uses_reference and args.use_lora and args.lora_dropout:
            raise UserError(f"--lora_dropout: expected 0 beside a reference model, found {args.lora_dropout}")
        self.objective, self.args, self.backbone, self.scorer = objective, args, backbone, scorer
        self.path = path
        self._vae = components.vae.eval() if scorer is not None else None
        self._frozen = None
        if objective.uses_reference and not args.use_lora:
            self._frozen = copy.deepcopy(components.unet).requires_grad_(False).eval()
        self._run: TrainingRun | None = None
        self._step, self._batch = 0, None

    def attach(self, run: TrainingRun) -> None:
        """Tells the context which run it serves."""
        self._run = run
        device = run.accelerator.device
        self.path = run.path
        if self._frozen is not None:  # in the precision, layout and kernels of the trained one
            layout = torch.channels_last if self.args.channels_last else torch.preserve_format
            run.weights.prepare(self._frozen, run.dtype)
            if run.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
                self._frozen.to(run.dtype)  # as both cast all weights of the trained one, norms too, for its passes
            self._frozen.requires_grad_(False).to(device, memory_format=layout)
            if self.args.torch_compile:
                compile_blocks(self._frozen)
        if self._vae is not None:
            self._vae.to(device)

    def at(self, step: int, batch: Batch) -> "AlignmentContext":
        """Points at the micro-batch that is prepared next."""
        self._step, self._batch = step, batch
        return self

    def reference(self, batch: Batch) -> torch.Tensor:
        """The reference's output (B, C, h, w) for a prepared batch."""
        return self.predict_reference(batch.noisy_latents, batch.times, batch.conditioning)

    @torch.no_grad()
    def predict(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor:
        """The trained UNet's output (B, C, h, w), in float32."""
        unet = self._run.unet
        was_training = unet.training
        unet.eval()
        try:
            return self.backbone.predict(unet, latents, self.path.labels[times], conditioning).float()
        finally:
            unet.train(was_training)

    @torch.no_grad()
    def predict_reference(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor:
        """The reference's output (B, C, h, w), in float32, through the same autocast."""
        if self._frozen is not None:
            with self._run.accelerator.autocast():
                return self.backbone.predict(self._frozen, latents, self.path.labels[times], conditioning).float()
        unet = self._run.accelerator.unwrap_model(self._run.unet)
        unet.disable_adapters()
        try:
            return self.backbone.predict(self._run.unet, latents, self.path.labels[times], conditioning).float()
        finally:
            unet.enable_adapters()

    @torch.no_grad()
    def score(self, latents: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B,) rewards of clean latents (B, C, h, w) for the captions of the micro-batch's rows (B,)."""
        pixels = ((decode(self._vae, latents) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        images = [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        scores = self.scorer.score(self._captions(rows), images)
        return torch.as_tensor(scores, dtype=torch.float32, device=latents.device)

    def empty_conditioning(self, conditioning: dict) -> dict:
        """The empty caption's conditioning, sizes as given."""
        prompts = self._run.data.images.prompts
        return {
            name: prompts[name][-1:].expand_as(value) if name in prompts else value
            for name, value in conditioning.items()
        }

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        """(B, *shape) standard normal numbers, each row's from (seed, purpose, step, slot)."""
        return self._numbers(torch.randn, torch.float32, purpose, shape)

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        """(B, *shape) float64 in [0, 1), each row's from (seed, purpose, step, slot)."""
        return self._numbers(torch.rand, torch.float64, purpose, shape)

    def _numbers(self, draw: Any, dtype: torch.dtype, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        seeds = [derive_seed(self.args.seed, purpose, self._step, slot) for slot in self._batch.slots.tolist()]
        drawn = [draw(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) for seed in seeds]
        return torch.stack(drawn).to(self._run.accelerator.device)

    def _captions(self, rows: torch.Tensor) -> list[str]:
        images = self._run.data.images
        places = images.prompt_rows[self._batch.rows[rows]].tolist()
        return [images.captions[place] for place in places]
