# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""One training loop for every objective, and what objectives reach for while they prepare a batch."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from PIL import Image

from ..core.records import derive_seed
from ..errors import UserError
from ..models.families import FAMILIES
from ..models.family import Components, Family
from ..models.latents import decode
from ..objectives.base import Batch, Objective
from ..rewards.settings import RewardSettings
from ..scoring.scorer import CompositeScorer, load_scorer
from .accelerator import create_accelerator
from .data import check_data_settings, encode_rows, load_rows
from .run import TrainingRun
from .settings import DEFAULT_REWARDS, TrainingSettings


def train(
    settings: TrainingSettings,
    objective: Objective,
    rewards: Sequence[str] = (),
    reward_settings: RewardSettings | None = None,
) -> TrainingRun:
    """Trains a denoiser with any objective and saves the pipeline.

    Args:
        settings (`TrainingSettings`): model, data, and how to train.
        objective (`Objective`): what to optimise.
        rewards (`Sequence[str]`, *optional*): each `name=weight` or `name`, for an objective that scores images; by
            default PickScore where it scores what it makes.
        reward_settings (`RewardSettings`, *optional*): how they are loaded and run.

    Returns:
        `TrainingRun`: finished.

    Raises:
        UserError: for settings or data that the objective cannot use.
    """
    check_data_settings(settings, objective, rewards)
    if objective.uses_reward:
        rewards = rewards or DEFAULT_REWARDS
    reward_settings = reward_settings or RewardSettings()
    accelerator, family = create_accelerator(settings), FAMILIES[settings.backbone]

    def scorer() -> CompositeScorer:
        where = (accelerator.device, settings.pretrained_model_name_or_path, settings.dataset_name)
        return load_scorer(rewards, reward_settings, *where)

    rows = load_rows(settings, objective, accelerator, scorer if rewards else None)
    components = family.load(settings.source, accelerator.device, settings.prediction_type)
    data = encode_rows(rows, settings, objective, family, components, accelerator)
    judge = scorer() if objective.uses_reward else None
    context = TrainingContext(objective, settings, family, components, judge)
    flags = _reward_flags(rewards, reward_settings)
    run = TrainingRun(settings, accelerator, family, components, data, objective, flags)
    context.attach(run)
    for step in run.steps():
        for micro_batch in run.micro_batches(step):
            with torch.no_grad():
                batch = objective.prepare(micro_batch, context.at(step, micro_batch))
            prediction = family.predict(run.denoiser, batch.noisy_latents, batch.timesteps, batch.conditioning)
            reference = None
            if objective.uses_reference:
                reference = context.predict_reference(batch.noisy_latents, batch.times, batch.conditioning)
            loss, metrics = objective.loss(batch, prediction, reference)
            run.backward(loss, prediction, batch, metrics)
        run.finish_step()
    run.finish()
    return run


def _reward_flags(rewards: Sequence[str], settings: RewardSettings) -> dict[str, Any]:
    """The flags that give these rewards."""
    return {
        "rewards": list(rewards),
        "reward_checkpoint": [f"{name}={path}" for name, path in settings.checkpoints.items()],
        "reward_backend": [f"{name}={backend}" for name, backend in settings.backends.items()],
        "reward_batch_size": settings.batch_size,
        "reward_precision": settings.precision,
        "reward_residency": settings.residency,
        "dataloader_num_workers": settings.num_workers,
    }


class TrainingContext:
    """The `Context` of `objectives.base` for one training run; made before the run, which changes the denoiser.

    The reference is the denoiser as it is now: a frozen copy in the same precision, or, with LoRA, the trained model with
    its adapters switched off, which costs no memory.
    """

    def __init__(
        self,
        objective: Objective,
        settings: TrainingSettings,
        family: Family,
        components: Components,
        scorer: CompositeScorer | None = None,
    ) -> None:
        path = components.path
        if objective.follows_model and path.kind == "epsilon" and path.ends_without_signal:
            wanted = f"expected v_prediction or sample for {type(objective).__name__} with zero terminal SNR"
            raise UserError(f"--prediction_type: {wanted}, where noise says nothing of the image, found epsilon")
        if objective.uses_reference and settings.use_lora and settings.lora_dropout:
            raise UserError(f"--lora_dropout: expected 0 beside a reference model, found {settings.lora_dropout}")
        self.family, self.scorer, self.path, self._seed = family, scorer, path, settings.seed
        self._vae = components.vae.eval() if scorer is not None else None
        self._frozen = None
        if objective.uses_reference and not settings.use_lora:
            self._frozen = copy.deepcopy(components.denoiser).requires_grad_(False).eval()
        self._run: TrainingRun | None = None
        self._step, self._batch = 0, None

    def attach(self, run: TrainingRun) -> None:
        """Tells the context which run it serves."""
        self._run = run
        self.path = run.path
        if self._frozen is not None:  # in the precision, layout and kernels of the trained one
            run.model.weights.prepare(self._frozen, run.model.dtype)
            if run.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
                self._frozen.to(run.model.dtype)  # as both cast all weights of the trained one, norms too
            run.model.place(self._frozen.requires_grad_(False))
        if self._vae is not None:
            self._vae.to(run.accelerator.device)

    def at(self, step: int, batch: Batch) -> "TrainingContext":
        """Points at the micro-batch that is prepared next."""
        self._step, self._batch = step, batch
        return self

    @torch.no_grad()
    def predict(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor:
        """The trained model's output (B, C, h, w), in float32."""
        denoiser = self._run.denoiser
        was_training = denoiser.training
        denoiser.eval()
        try:
            return self.family.predict(denoiser, latents, self.path.labels[times], conditioning).float()
        finally:
            denoiser.train(was_training)

    @torch.no_grad()
    def predict_reference(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor:
        """The reference's output (B, C, h, w), in float32, through the same autocast."""
        if self._frozen is not None:
            with self._run.accelerator.autocast():
                return self.family.predict(self._frozen, latents, self.path.labels[times], conditioning).float()
        denoiser = self._run.accelerator.unwrap_model(self._run.denoiser)
        denoiser.disable_adapters()
        try:
            return self.family.predict(self._run.denoiser, latents, self.path.labels[times], conditioning).float()
        finally:
            denoiser.enable_adapters()

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

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a scalar over all processes."""
        return self._run.accelerator.reduce(value, reduction="mean")

    def _numbers(self, draw: Callable, dtype: torch.dtype, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        seeds = [derive_seed(self._seed, purpose, self._step, slot) for slot in self._batch.slots.tolist()]
        drawn = [draw(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) for seed in seeds]
        return torch.stack(drawn).to(self._run.accelerator.device)

    def _captions(self, rows: torch.Tensor) -> list[str]:
        images = self._run.data.images
        places = images.prompt_rows[self._batch.rows[rows]].tolist()
        return [images.captions[place] for place in places]
