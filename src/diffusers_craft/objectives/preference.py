# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""DPO (arXiv 2311.12908), DSPO and MaPO (arXiv 2406.06424) of pairs, KTO (arXiv 2404.04465) of labelled images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..errors import UserError
from . import base
from .base import Batch, Context, LossOutput, Objective, choice, error_changes, number, pair_metrics


UTILITIES = {
    "kahneman_tversky": torch.sigmoid,
    "loss_averse": F.logsigmoid,
    "risk_seeking": lambda value: -F.logsigmoid(-value),
}


def dpo_loss(changes: torch.Tensor, beta: float, factors: torch.Tensor | None = None) -> torch.Tensor:
    """mean_P softplus(f beta / 2 (d_w - d_l)) of (2P,) d = m_theta - m_ref; (P,) f is 1 by default.

    As in the authors' code, errors are means over C, H and W, with a factor 1/2; the paper's sum of squares times
    beta * T * omega is beta / (2 C H W) of it. The paper's good range of beta is 2000 to 5000.
    """
    logits = -0.5 * beta * base.pair_margins(changes)
    if factors is not None:
        logits = factors * logits
    return F.softplus(-logits).mean()


@dataclass
class DPO(Objective):
    """Diffusion-DPO (eq. 14): raise the winner's likelihood over the loser's, relative to a reference.

    Args:
        beta (`float`, *optional*, defaults to 5000): strength of the reference, see `dpo_loss`; the paper's is 2000 for
            SD1.5, its code's launcher takes 5000 for both models.
    """

    title: ClassVar[str] = "Diffusion-DPO"
    paper: ClassVar[str] = "2311.12908"
    beta: float = number(5000.0, 0, above=True)
    name: ClassVar[str] = "dpo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        return LossOutput(dpo_loss(changes, self.beta), pair_metrics(changes))


def dspo_loss(
    prediction: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    changes: torch.Tensor,
    beta: float,
    gate_beta: float,
    detach_gate: bool = True,
) -> torch.Tensor:
    """Mean of ((p_w - target_w) - beta (1 - sigmoid(u)) (p_w - ref_w))^2, u = -gate_beta / 2 (d_w - d_l).

    Tensors are (2P, C, H, W), changes (2P,). Of the released code's losses, this is the SD1.5 script's in closed form,
    with 0.001 for both betas, so a gate of 1/2, and no detaching; the SDXL script's has no denoising term.
    """
    gate = torch.sigmoid(0.5 * gate_beta * base.pair_margins(changes))  # 1 - sigmoid(u)
    gate = base.per_row(gate.detach() if detach_gate else gate, prediction)
    winners = prediction.chunk(2)[0]
    residual = (winners - target.chunk(2)[0]) - beta * gate * (winners - reference.chunk(2)[0])
    return residual.square().mean()


@dataclass
class DSPO(Objective):
    """DSPO: the winner's score is matched to the data's plus the gradient of the preference.

    The defaults let the gate act, unlike the code's 0.001 in both places.

    Args:
        beta (`float`, *optional*, defaults to 0.5): weight of the preference's gradient; 0 is SFT on the winners.
        gate_beta (`float`, *optional*, defaults to 5000): inside the sigmoid.
        detach_gate (`bool`, *optional*, defaults to `True`): whether losers only steer the weights.
    """

    title: ClassVar[str] = "DSPO (Zhu et al., ICLR 2025)"
    beta: float = number(0.5, 0, 1)
    gate_beta: float = number(5000.0, 0)
    detach_gate: bool = True
    name: ClassVar[str] = "dspo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        scale = 1.0 if batch.error_scale is None else base.per_row(batch.error_scale.sqrt(), batch.target.float())
        prediction, reference, target = (scale * x.float() for x in (prediction, reference, batch.target))
        loss = dspo_loss(prediction, reference, target, changes, self.beta, self.gate_beta, self.detach_gate)
        return LossOutput(loss, pair_metrics(changes))


def bounded_likelihood(errors: torch.Tensor) -> torch.Tensor:
    """phi(u) = u / (exp(u) - 1) in (0, 1], falling, for (B,) errors u >= 0; phi(0) = 1, phi'(0) = -1/2."""
    positive = errors.clamp(min=1e-6)
    return torch.where(errors > 1e-6, positive / torch.expm1(positive), 1 - errors / 2)


def mapo_loss(errors: torch.Tensor, beta: float = 8.0, form: str = "paper", scale: float = 0.5) -> torch.Tensor:
    """mean m_w + a * mean softplus(-margin) of (2P,) errors m; a beta of 0 is fine-tuning on the winners.

    `paper` (AAAI version): a = 1 / beta, margin = phi(m_w)^beta - phi(m_l)^beta. `code`: a = beta, margin =
    1000 (phi(s m_w) - phi(s m_l)), s being the scale, which unlearns losers far more strongly.
    """
    winners, losers = errors.chunk(2)
    if beta == 0:
        return winners.mean()
    if form == "code":
        margin = 1000.0 * (bounded_likelihood(scale * winners) - bounded_likelihood(scale * losers))  # T = 1000
        return winners.mean() + beta * F.softplus(-margin).mean()
    margin = bounded_likelihood(winners) ** beta - bounded_likelihood(losers) ** beta
    return winners.mean() + F.softplus(-margin).mean() / beta


@dataclass
class MaPO(Objective):
    """MaPO: winners over losers by a margin of bounded likelihoods, without a reference model.

    Args:
        beta (`float`, *optional*, defaults to 8): of the margin, see `mapo_loss`; for the code's form 0.1 is its own.
        form (`str`, *optional*, defaults to `"paper"`): `paper` or `code`, see `mapo_loss`.
        scale (`float`, *optional*, defaults to 0.5): of errors in the code's margin.
    """

    title: ClassVar[str] = "MaPO"
    paper: ClassVar[str] = "2406.06424"
    beta: float = number(8.0, 0)
    form: str = choice("paper", ("paper", "code"))
    scale: float = number(0.5, 0, above=True)
    name: ClassVar[str] = "mapo"
    unit: ClassVar[str] = "pair"

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor | None = None) -> LossOutput:
        errors = base.noise_errors(batch, prediction)
        loss = mapo_loss(errors, self.beta, self.form, self.scale)
        return LossOutput(loss, {"accuracy": base.order_accuracy(*errors.detach().chunk(2))})


def kto_loss(
    changes: torch.Tensor,
    labels: torch.Tensor,
    beta: float,
    baseline: torch.Tensor | None = None,
    utility: str = "kahneman_tversky",
    liked_weight: float = 1.0,
    disliked_weight: float = 1.0,
) -> torch.Tensor:
    """mean_B lambda_y (1 - U(y beta (g - z))), g = -changes, y the label's sign, z = max(0, mean g) a constant.

    `baseline` is the mean of g, by default that of these rows. There is no 1/2 beside beta: 5000 is 10000 in DPO's.
    """
    gains = -changes
    baseline = (gains.mean() if baseline is None else baseline).detach().clamp(min=0)
    labels = labels.sign().to(gains)
    weights = torch.where(labels > 0, liked_weight, disliked_weight)
    return (weights * (1 - UTILITIES[utility](labels * beta * (gains - baseline)))).mean()


@dataclass
class KTO(Objective):
    """Diffusion-KTO, through a utility that saturates; the sign of a row's `weights` is its label.

    The mean gain z is taken over the micro-batches of all processes that run together, so results depend on how a batch
    is cut (with batches of 2, as in the paper, it is mostly noise).

    Args:
        beta (`float`, *optional*, defaults to 5000): strength of the reference; counts twice as much as DPO's.
        utility (`str`, *optional*, defaults to `"kahneman_tversky"`): or `loss_averse`, `risk_seeking`.
        liked_weight (`float`, *optional*, defaults to 1): lambda of images labelled +1.
        disliked_weight (`float`, *optional*, defaults to 1): lambda of images labelled -1.
    """

    title: ClassVar[str] = "Diffusion-KTO"
    paper: ClassVar[str] = "2404.04465"
    beta: float = number(5000.0, 0, above=True)
    utility: str = choice("kahneman_tversky", list(UTILITIES))
    liked_weight: float = number(1.0, 0)
    disliked_weight: float = number(1.0, 0)
    name: ClassVar[str] = "kto"
    unit: ClassVar[str] = "label"
    uses_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.liked_weight and not self.disliked_weight:
            raise UserError("--liked_weight, --disliked_weight: expected one above 0, found 0 for both")

    def prepare(self, batch: Batch, context: Context) -> Batch:
        return batch._replace(extras={"mean": context.mean})

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        mean_gain = -changes.detach().mean()
        baseline = batch.extras["mean"](mean_gain) if "mean" in batch.extras else mean_gain
        options = (self.beta, baseline, self.utility, self.liked_weight, self.disliked_weight)
        return LossOutput(kto_loss(changes, batch.weights, *options), {"mean_gain": mean_gain})
