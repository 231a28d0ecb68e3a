# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Training batches out of cached tensors, drawn by (seed, step, row of the global batch).

A run therefore depends neither on the number of processes, nor on gradient accumulation, nor on where it was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.records import derive_seed
from ..models.noise import Draw, NoisePath


@dataclass
class TrainingData:
    """n rows of a dataset as tensors."""

    latents: torch.Tensor  # (F, n, C, h, w) scaled posterior means; F = 2 holds the flipped images too
    latent_stds: torch.Tensor | None  # like `latents`; `None` where the latents are exact
    prompts: dict[str, torch.Tensor]  # name -> (u + 1, ...) conditioning of u distinct captions, last the empty one
    prompt_rows: torch.Tensor  # (n,) int64 row of `prompts` that belongs to each image
    sizes: dict[str, torch.Tensor]  # name -> (n, ...) conditioning on sizes, float32
    weights: torch.Tensor  # (n,) of the loss: advantages, or labels by their sign
    captions: tuple[str, ...] = ()  # the u distinct captions, for objectives that score images

    def __len__(self) -> int:
        return self.latents.shape[1]

    @property
    def images(self) -> "TrainingData":
        """Itself; as `PairData.images`."""
        return self

    def to(self, device: torch.device, prompt_dtype: torch.dtype) -> "TrainingData":
        """Everything on `device`; only the prompts' conditioning takes `prompt_dtype`, the rest stays as it is."""
        return replace(
            self,
            latents=self.latents.to(device),
            latent_stds=None if self.latent_stds is None else self.latent_stds.to(device),
            prompts={name: value.to(device, prompt_dtype) for name, value in self.prompts.items()},
            prompt_rows=self.prompt_rows.to(device),
            sizes={name: value.to(device) for name, value in self.sizes.items()},
            weights=self.weights.to(device),
        )

    def draw(
        self,
        step: int,
        slots: Sequence[int],
        rows: torch.Tensor,
        seed: int,
        path: NoisePath,
        caption_dropout: float,
        noise_offset: float = 0.0,
    ) -> Draw:
        """The B dataset rows of a micro-batch, whose places in the global batch of a step (from 0) are the slots.

        `noise_offset` is the deviation of a constant that each channel's noise gets, which lets the model learn very
        dark and very bright images (diffusers' `--noise_offset`).
        """
        draws = 1 if self.latent_stds is None else 2  # the posterior's sample needs noise of its own
        device, pinned = self.latents.device, self.latents.is_cuda  # a copy from pinned memory does not wait
        noise = torch.empty(len(slots), draws, *self.latents.shape[2:], pin_memory=pinned)
        uniform = torch.empty(len(slots), 3, dtype=torch.float64)
        generator = torch.Generator()
        for i, slot in enumerate(slots):
            generator.manual_seed(derive_seed(seed, "draw", step, slot))
            uniform[i].uniform_(generator=generator)
            noise[i].normal_(generator=generator)
            if noise_offset:  # after the rest, so that it changes nothing else
                noise[i, 0] += noise_offset * torch.randn(noise.shape[2], 1, 1, generator=generator)
        noise = noise.to(device, non_blocking=True)
        flips = (uniform[:, 1] * self.latents.shape[0]).long()
        dropped = (uniform[:, 2] < caption_dropout).long()
        indices = torch.stack([rows, path.draw_times(uniform[:, 0]), flips, dropped])
        rows, times, flips, dropped = indices.to(device).unbind()

        latents = self.latents[flips, rows]
        if self.latent_stds is not None:
            latents = latents + self.latent_stds[flips, rows] * noise[:, 1]
        empty = self.prompts["encoder_hidden_states"].shape[0] - 1
        prompt_rows = self.prompt_rows[rows].masked_fill(dropped.bool(), empty)
        conditioning = {name: value[prompt_rows] for name, value in self.prompts.items()}
        conditioning |= {name: value[rows] for name, value in self.sizes.items()}
        return Draw(latents, noise[:, 0], times, conditioning, self.weights[rows], rows, torch.tensor(slots))


@dataclass
class PairData:
    """n pairs of a better and a worse image of one caption; one row is one pair."""

    images: TrainingData  # m images
    pairs: torch.Tensor  # (n, 2) int64 rows of `images`: winner, loser
    weights: torch.Tensor  # (n,) how much each pair counts; 1 is a plain preference

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: torch.device, prompt_dtype: torch.dtype) -> "PairData":
        """As `TrainingData.to`."""
        return PairData(self.images.to(device, prompt_dtype), self.pairs, self.weights.to(device))

    def draw(self, step: int, slots: Sequence[int], rows: torch.Tensor, **options: Any) -> Draw:
        """P pairs as 2P rows, winners first, with weights +w and -w; arguments as of `TrainingData.draw`.

        What is random belongs to the slot, so that a pair shares its time, its noise, its flip and whether its caption
        is dropped.
        """
        sides = [self.images.draw(step, slots, self.pairs[rows, side], **options) for side in (0, 1)]
        winners, losers = sides
        joined = {
            name: torch.cat([getattr(side, name) for side in sides]) for name in ("latents", "noise", "times", "rows")
        }
        conditioning = {
            name: torch.cat([value, losers.conditioning[name]]) for name, value in winners.conditioning.items()
        }
        weights = self.weights[rows.to(self.weights.device)]
        return winners._replace(**joined, conditioning=conditioning, weights=torch.cat([weights, -weights]))


def shuffled_rows(num_rows: int, step: int, batch_size: int, seed: int) -> torch.Tensor:
    """(batch_size,) int64 dataset rows of a global batch: consecutive shuffles of the whole dataset, cut into batches.

    After any number of steps no row has been drawn twice more often than another; a batch may be larger than the data.
    """
    start = step * batch_size
    first, last = start // num_rows, (start + batch_size - 1) // num_rows
    generator, shuffles = torch.Generator(), []
    for epoch in range(first, last + 1):
        generator.manual_seed(derive_seed(seed, "order", epoch))
        shuffles.append(torch.randperm(num_rows, generator=generator))
    offset = start - first * num_rows
    return torch.cat(shuffles)[offset : offset + batch_size]
