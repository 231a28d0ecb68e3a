# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What every objective is to the training loop: it says what it needs, prepares a batch, and turns outputs into a loss.

    batch = objective.prepare(batch, context)                     # noising, inversion, roll-out or sampling; no gradient
    prediction = unet(batch.noisy_latents, batch.timesteps, batch.conditioning)
    reference = the same of the frozen model, if objective.uses_reference
    loss, metrics = objective.loss(batch, prediction, reference)

It owns no model and no optimizer, and draws nothing but by its context. Pairs stand as [w_1 .. w_P, l_1 .. l_P] in the
batch: row i and row P + i are one pair, with the same timestep and the same noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from ..errors import UserError


class Batch(NamedTuple):
    """What one forward and backward pass sees: B rows of this process."""

    noisy_latents: torch.Tensor  # (B, C, h, w) x at its time
    times: torch.Tensor  # (B,) int64 in [0, T): which of the path's training times
    timesteps: torch.Tensor  # (B,) what the model is told of it
    conditioning: dict[str, torch.Tensor]  # name -> (B, ...)
    target: torch.Tensor  # (B, C, h, w) what the model should predict
    weights: torch.Tensor  # (B,) advantage, label or factor of each row; its sign says whether the row is liked
    timestep_weights: torch.Tensor | None = None  # (B,) of min-SNR; None weighs every time alike
    error_scale: torch.Tensor | None = None  # (B,) from squared errors of the output to those of the noise; None is 1
    # Of the rows as they were drawn; a batch that `prepare` makes out of others has none.
    latents: torch.Tensor | None = None  # (B, C, h, w) x_0
    noise: torch.Tensor | None = None  # (B, C, h, w)
    rows: torch.Tensor | None = None  # (B,) int64 dataset rows
    slots: torch.Tensor | None = None  # (B,) int64, or (B / 2,) of pairs: place of each unit in the global batch; CPU
    extras: dict[str, Any] = {}  # what one objective's `prepare` hands to its own `loss`


class LossOutput(NamedTuple):
    """A step's result."""

    loss: torch.Tensor  # scalar, a mean over the micro-batch's units
    metrics: dict[str, torch.Tensor] = {}  # name -> detached scalar


class Context(Protocol):
    """What `prepare` may use; every call runs without gradient."""

    path: Any  # `models.noise.NoisePath` of the base: what times and outputs mean

    # The trained and the frozen model's output (B, C, h, w) at (B,) int64 times of the path.
    def predict(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor: ...
    def predict_reference(self, latents: torch.Tensor, times: torch.Tensor, conditioning: dict) -> torch.Tensor: ...

    # (B,) rewards of clean latents for the captions of the batch's rows (B,).
    def score(self, latents: torch.Tensor, rows: torch.Tensor) -> torch.Tensor: ...

    # The conditioning of the empty caption with as many rows.
    def empty_conditioning(self, conditioning: dict) -> dict: ...

    # (B, *shape) numbers, each row's from its own seed: standard normal, or float64 in [0, 1).
    def normal(self, purpose: str, *shape: int) -> torch.Tensor: ...
    def uniform(self, purpose: str, *shape: int) -> torch.Tensor: ...

    # The mean of a scalar over the processes that run together.
    def mean(self, value: torch.Tensor) -> torch.Tensor: ...


class Objective:
    """Base of all objectives: what it needs, as class attributes or properties, and what it computes.

    A dataclass's fields are the method's options: flags of the scripts, and part of a run's record. The default `prepare`
    is forward noising, which the data have done already. Fields made by `number` and `choice` are checked.
    """

    title: ClassVar[str] = ""  # the method's name on a card
    paper: ClassVar[str] = ""  # its arXiv id
    unit: ClassVar[str] = "single"  # a row: `single` image, image with a `label`, `pair` of images, `prompt`
    uses_advantages: ClassVar[bool] = True  # single images: whether their weights come from the advantages
    uses_timestep_weights: ClassVar[bool] = False  # whether its loss heeds `Batch.timestep_weights`
    uses_reference: ClassVar[bool] = False
    uses_reward: ClassVar[bool] = False
    uses_scores: ClassVar[bool] = False  # whether the images of pairs must come with scores
    own_noise: ClassVar[bool] = False  # whether it trains on other noise than the data's, which gets the noise_offset
    follows_model: ClassVar[bool] = False  # whether `prepare` goes where the model points, also from pure noise
    remedy: ClassVar[str] = ""  # a flag to try where rows of negative weight make the loss diverge
    paper_hours: ClassVar[Mapping[str, float]] = {}  # family -> H100-hours of the paper's recipe

    def __post_init__(self) -> None:
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata.get("one_of")
            if "range" in option.metadata:
                check_range(option.name, value, *option.metadata["range"])
            elif choices and value not in choices:
                raise UserError(f"--{option.name}: expected one of {', '.join(choices)}, found {value!r}")

    @property
    def name(self) -> str:
        """What a run's record calls it."""
        return type(self).__name__

    @property
    def is_one_pass(self) -> bool:
        """Whether a row costs one pass of the model forward and back, and nothing else."""
        return self.unit == "single" and not self.uses_reference and type(self).prepare is Objective.prepare

    def record(self) -> dict[str, Any]:
        """Its name and options, for a run's record and for what a resumed run is compared with."""
        plain = bool | int | float | str | None
        options = {name: value for name, value in vars(self).items() if isinstance(value, plain)}
        return {"objective": self.name} | options

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        """Options that the paper sets otherwise for a family of models, by `Family.name`."""
        return {}

    def row_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        """(n,) `Batch.weights` of single images out of their advantages."""
        return advantages

    def pair_weights(self, scores: torch.Tensor, score_range: float) -> torch.Tensor:
        """(P,) size of the pairs' `Batch.weights`; called with `uses_scores`, which are ones without.

        `scores` (P, 2) are float64 of winners and losers in one unit, the dataset's `score_range` of them is above 0.
        """
        return torch.ones(len(scores))

    def prepare(self, batch: Batch, context: Context) -> Batch:
        """Adds to a micro-batch whatever the loss needs."""
        return batch

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor | None) -> LossOutput:
        """The loss of B predictions."""
        raise NotImplementedError


def number(default: float, low: float, high: float = math.inf, above: bool = False) -> Any:
    """A field of an objective with a number that `check_range` accepts."""
    return field(default=default, metadata={"range": (low, high, above)})


def choice(default: str, choices: Sequence[str]) -> Any:
    """A field of an objective with one of the `choices`."""
    return field(default=default, metadata={"one_of": choices})


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) values as (B, 1, 1, 1) in the dtype of `like`."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def denoising_errors(model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) mean squared errors over C, H and W, in float32, of (B, C, H, W) predictions and what they should be."""
    return (model_pred.float() - target.float()).square().flatten(1).mean(dim=1)


def noise_errors(batch: Batch, prediction: torch.Tensor) -> torch.Tensor:
    """(B,) squared errors of the noise that a prediction means: the unit of all betas, whatever the model predicts."""
    errors = denoising_errors(prediction, batch.target)
    return errors if batch.error_scale is None else batch.error_scale.to(errors) * errors


def error_changes(batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(B,) d = m_theta - m_ref: how much worse each row is denoised than by the reference; -d is the implicit reward."""
    return noise_errors(batch, prediction) - noise_errors(batch, reference)


def pair_margins(changes: torch.Tensor) -> torch.Tensor:
    """(P,) s = d_w - d_l of (2P,) changes: below 0 where the winner gained more than the loser."""
    winners, losers = changes.chunk(2)
    return winners - losers


def pair_metrics(changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """How often the pairs stand in the right order, and how each side's error moved."""
    winners, losers = changes.detach().chunk(2)
    accuracy = order_accuracy(winners, losers)
    return {"accuracy": accuracy, "winner_change": winners.mean(), "loser_change": losers.mean()}


def order_accuracy(winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """How often (P,) winners lie below their losers; as good as a coin where both are equal."""
    return (winners < losers).double().mean() + 0.5 * (winners == losers).double().mean()


def best_and_worst(rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B,) places of the highest and lowest finite ones of (B, n) rewards, their gap, and whether two or more are.

    Where not, the gap is 0 and the places mean nothing.
    """
    finite = rewards.isfinite()
    best = rewards.masked_fill(~finite, -math.inf).argmax(1)
    worst = rewards.masked_fill(~finite, math.inf).argmin(1)
    judged = finite.sum(1) > 1
    gap = (rewards.gather(1, best[:, None]) - rewards.gather(1, worst[:, None]))[:, 0]
    return best, worst, gap.masked_fill(~judged, 0.0), judged


def check_range(flag: str, value: float, low: float, high: float = math.inf, above: bool = False) -> None:
    """Raises a `UserError` unless `value` is finite and in [low, high], or in (low, high] with `above`."""
    if math.isfinite(value) and (value > low if above else value >= low) and value <= high:
        return
    wanted = f"{'more than' if above else 'at least'} {low}"
    wanted += " and finite" if high == math.inf and not math.isfinite(value) else ""
    wanted += f" and at most {high}" if high != math.inf else ""
    raise UserError(f"--{flag}: expected {wanted}, found {value}")
