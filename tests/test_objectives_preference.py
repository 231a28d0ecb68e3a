# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Preference objectives against hand-computed values, their limits, and each other."""

import argparse
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from objective_driver import SCHEDULE, gradient, random_latents, small_net

from diffusers_craft import (
    DPO,
    DSPO,
    KTO,
    SPO,
    InPO,
    MaPO,
    RLHFSharpening,
    SFTSharpening,
    SmPO,
    TrainingSettings,
    craft_loss,
)
from diffusers_craft.models.noise import Draw, diffuse
from diffusers_craft.objectives.base import Batch
from diffusers_craft.objectives.mapo import bounded_likelihood
from diffusers_craft.objectives.spo import spo_log_ratios
from diffusers_craft.scripts import (
    NoisePath,
    add_fields,
    add_objective_options,
    dpo_loss,
    dspo_loss,
    from_args,
    kto_loss,
    mapo_loss,
    objective_from_args,
    smoothing_factors,
    smpo_loss,
    spo_loss,
)
from diffusers_craft.training.data import check_data_settings


ERRORS = torch.tensor([0.10, 0.20], dtype=torch.float64)  # m_w, m_l
REFERENCE = torch.tensor([0.12, 0.18], dtype=torch.float64)
CHANGES = ERRORS - REFERENCE  # margin s = -0.04


@pytest.fixture
def net():
    return small_net()


def _errors(net: torch.nn.Module, noisy: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (net(noisy) - target).square().flatten(1).mean(1)


def _pairs(net, count: int = 6, moved: float = 0.0):
    """Noisy latents and targets of pairs that share their noise; changes against a reference `moved` away."""
    noise, shared = random_latents(count), random_latents(count, seed=2)
    noisy = torch.cat([random_latents(count, seed=3) + noise, random_latents(count, seed=4) + noise])
    target = torch.cat([shared, shared])
    reference = copy.deepcopy(net).requires_grad_(False)
    for index, parameter in enumerate(reference.parameters()):
        generator = torch.Generator().manual_seed(index)
        parameter += moved * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return noisy, target, _errors(net, noisy, target) - _errors(reference, noisy, target), reference


def _batch(noisy: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> Batch:
    times = torch.zeros(len(noisy), dtype=torch.long)
    return Batch(noisy, times, times, {}, target, weights)


@pytest.mark.parametrize(("beta", "loss"), [(1.0, 0.683197), (10.0, 0.598139), (5000.0, 3.7e-44)])
def test_dpo_by_hand(beta, loss):
    assert dpo_loss(CHANGES, beta).item() == pytest.approx(loss, rel=0.01 if loss < 1e-9 else 1e-6)
    assert dpo_loss(CHANGES.float(), beta).isfinite()


def test_dpo_gradient_by_hand():
    errors = ERRORS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dpo_loss(errors - REFERENCE, 10.0), errors)
    assert gradient.tolist() == pytest.approx([2.250830, -2.250830], abs=1e-6)


def test_dpo_swapping_negates_the_logit_and_large_beta_is_a_hinge():
    swapped = CHANGES.flip(0)
    difference = dpo_loss(swapped, 10.0) - dpo_loss(CHANGES, 10.0)
    assert difference.item() == pytest.approx(0.2, abs=1e-12)  # softplus(u) - softplus(-u) = u
    assert dpo_loss(swapped, 1e9).item() == pytest.approx(0.5e9 * 0.04)
    assert dpo_loss(CHANGES, 1e9).item() == 0.0


@pytest.mark.parametrize("beta", [1.0, 2000.0, 5000.0])
def test_reference_based_losses_at_the_reference(net, beta):
    noisy, target, changes, reference = _pairs(net)
    labels = torch.tensor([1.0, -1.0]).repeat_interleave(6)
    assert dpo_loss(changes, beta).item() == pytest.approx(math.log(2), abs=1e-14)
    assert smpo_loss(changes, torch.full((6,), 3.0), beta).item() == pytest.approx(math.log(2), abs=1e-14)
    assert kto_loss(changes, labels, beta).item() == 0.5
    sft = _errors(net, noisy, target)[:6].mean()
    dspo = dspo_loss(net(noisy), reference(noisy), target, changes, 0.3, beta)
    torch.testing.assert_close(dspo, sft, rtol=1e-14, atol=0)


def test_gradients_at_the_reference_are_parallel(net):
    """DPO : SmPO : KTO (balanced) : CRAFT (N = 2, L = mean A m) = beta/2 : f beta/2 : beta/4 : 1."""
    noisy, target, changes, _ = _pairs(net)
    labels = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(6)
    craft = gradient((labels * _errors(net, noisy, target)).mean(), net)
    beta, factor = 5000.0, 0.6
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(gradient(dpo_loss(changes, beta), net), beta / 2 * craft, **close)
    factors = torch.full((6,), factor, dtype=torch.float64)
    torch.testing.assert_close(gradient(smpo_loss(changes, factors, beta), net), factor * beta / 2 * craft, **close)
    torch.testing.assert_close(gradient(kto_loss(changes, labels, beta), net), beta / 4 * craft, **close)


def test_smpo_factors_by_hand():
    lowest, highest = 0.11543526500463486, 0.28201571106910706  # the official code's PickScore range
    winners = torch.tensor([0.22, 0.21, highest], dtype=torch.float64)
    losers = torch.tensor([0.20, 0.21, lowest], dtype=torch.float64)
    factors = smoothing_factors(winners, losers, highest - lowest)
    assert factors.tolist() == pytest.approx([0.599590, 0.0, 4.621172], abs=1e-6)
    probability = torch.sigmoid((winners - losers) / (highest - lowest))
    torch.testing.assert_close(factors, 10 * (2 * probability - 1))
    assert probability.tolist() == pytest.approx([0.529980, 0.5, 0.731059], abs=1e-6)


def test_smpo_with_hard_labels_is_dpo_bit_for_bit_and_equal_scores_teach_nothing(net):
    noisy, target, changes, reference = _pairs(net, moved=0.1)
    assert torch.equal(smpo_loss(changes, torch.ones(6), 2000.0), dpo_loss(changes, 2000.0))
    batch = _batch(noisy, target, torch.tensor([1.0, -1.0]).repeat_interleave(6))
    outputs = [objective.loss(batch, net(noisy), reference(noisy)).loss for objective in (DPO(2000.0), SmPO(), InPO())]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    flat = smpo_loss(changes, torch.zeros(6), 2000.0)
    assert flat.item() == pytest.approx(math.log(2)) and not gradient(flat, net).any()


def test_kto_by_hand():
    changes, labels = -torch.tensor([0.02, -0.02], dtype=torch.float64), torch.tensor([1.0, -1.0])
    assert kto_loss(changes, labels, 10.0).item() == pytest.approx(0.450166, abs=1e-6)


def test_kto_baseline_is_clamped_and_constant():
    changes = torch.tensor([0.03, 0.01], dtype=torch.float64, requires_grad=True)  # every gain is negative: z = 0
    liked = torch.ones(2)
    expected = (1 - torch.sigmoid(-10 * changes.detach())).mean()
    loss = kto_loss(changes, liked, 10.0)
    torch.testing.assert_close(loss.detach(), expected)
    better = kto_loss(-changes.detach(), liked, 10.0)  # every gain positive: z takes their mean away
    assert better.item() == pytest.approx(0.5, abs=1e-4)
    gained = (-changes.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(kto_loss(gained, liked, 10.0), gained)
    assert (gradient > 0).all()  # yet its gradient still lowers every liked error
    given = kto_loss(-changes.detach(), liked, 10.0, baseline=torch.tensor(0.0))
    assert given.item() < 0.5


@pytest.mark.parametrize("utility", ["loss_averse", "risk_seeking"])
def test_kto_utilities_reward_the_liked(utility):
    better, worse = (kto_loss(torch.tensor([d]), torch.ones(1), 10.0, torch.zeros(()), utility) for d in (-0.1, 0.1))
    assert better < worse
    with pytest.raises(ValueError, match="--utility: expected one of kahneman_tversky, .*found 'greedy'"):
        KTO(utility="greedy")


def test_kto_weights_are_the_labels_own(net):
    """Each side's share of the loss times its lambda; weights of one change nothing."""
    noisy, target, changes, reference = _pairs(net, moved=0.1)
    batch = _batch(noisy, target, torch.tensor([1.0, -1.0]).repeat_interleave(6))

    def loss(**weights):
        return KTO(beta=5.0, **weights).loss(batch, net(noisy), reference(noisy)).loss

    liked, disliked = loss(disliked_weight=0.0), loss(liked_weight=0.0)
    torch.testing.assert_close(liked + disliked, loss())
    torch.testing.assert_close(loss(liked_weight=0.5, disliked_weight=3.0), 0.5 * liked + 3 * disliked)
    alone = kto_loss(changes[:6].float(), torch.ones(6), 5.0, baseline=-changes.mean())
    torch.testing.assert_close(liked, alone / 2, rtol=1e-4, atol=0)


def test_mapo_by_hand():
    phi = bounded_likelihood(0.5 * ERRORS)
    assert phi.tolist() == pytest.approx([0.975208, 0.950833], abs=1e-6)
    assert 1000 * (phi[0] - phi[1]).item() == pytest.approx(24.3751, abs=1e-3)
    assert mapo_loss(ERRORS, 0.1, "code").item() == pytest.approx(0.1, abs=1e-9)
    same = torch.tensor([0.15, 0.15], dtype=torch.float64)
    assert mapo_loss(same, 0.3, "code").item() == pytest.approx(0.15 + 0.3 * math.log(2))
    assert mapo_loss(same, 8.0, "paper").item() == pytest.approx(0.15 + math.log(2) / 8)
    logit = 1000 * (phi[0] - phi[1])
    swapped = mapo_loss(ERRORS.flip(0), 0.1, "code") - mapo_loss(ERRORS, 0.1, "code")
    torch.testing.assert_close(swapped, 0.1 + 0.1 * logit)  # the SFT term's, and softplus(u) - softplus(-u) = u


def test_bounded_likelihood_at_zero_and_its_slope():
    errors = torch.tensor([0.0, 1e-9, 0.1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bounded_likelihood(errors).sum(), errors)
    k = math.e**0.1
    assert bounded_likelihood(errors)[0].item() == 1.0
    assert slope.tolist() == pytest.approx([-0.5, -0.5, -(0.1 * k - k + 1) / (k - 1) ** 2], abs=1e-9)


def test_mapo_and_dspo_without_preference_are_fine_tuning_on_winners(net):
    noisy, target, changes, reference = _pairs(net, moved=0.1)
    sft = craft_loss(net(noisy)[:6], target[:6], torch.ones(6))
    batch = _batch(noisy, target, torch.tensor([1.0, -1.0]).repeat_interleave(6))
    for objective in (MaPO(beta=0.0), MaPO(beta=0.0, form="code"), DSPO(beta=0.0)):
        loss = objective.loss(batch, net(noisy), reference(noisy)).loss
        torch.testing.assert_close(loss, sft, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient(loss, net), gradient(sft, net), rtol=1e-4, atol=1e-8)


def test_dspo_with_the_codes_beta_is_fine_tuning_on_winners(net):
    """beta = gate = 0.001 leaves the gate at 1/2 whatever the margin: 0.9995 of the gradient, all of the direction."""
    noisy, target, changes, reference = _pairs(net)
    loss = DSPO(beta=0.001, gate_beta=0.001, detach_gate=False).loss(
        _batch(noisy, target, torch.ones(12)), net(noisy), reference(noisy)
    )
    found, sft = gradient(loss.loss, net), gradient(_errors(net, noisy, target)[:6].mean(), net)
    assert (found.norm() / sft.norm()).item() == pytest.approx(0.9995, abs=1e-6)
    assert torch.cosine_similarity(found, sft, dim=0).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "objective",
    [DPO(beta=50.0), KTO(beta=20.0), MaPO(), MaPO(beta=0.1, form="code"), SmPO(beta=50.0, inversion_steps=0)],
)
def test_any_preference_on_a_velocity_model(net, objective):
    """|eps_theta - eps|^2 = abar |v_theta - v|^2 at one x_t: the loss is that of the noise's errors, as for all models."""
    path, pairs = NoisePath.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction")), 4
    times = torch.tensor([100, 400, 600, 900]).repeat(2)
    noise, weights = random_latents(pairs, seed=5).repeat(2, 1, 1, 1), torch.ones(pairs)
    draw = Draw(random_latents(2 * pairs), noise, times, {}, torch.cat([weights, -weights]), times, times)
    batch = diffuse(draw, path)
    outputs = [net(batch.noisy_latents), net(0.9 * batch.noisy_latents)]
    found = objective.loss(batch, *outputs).loss
    abar = path.levels[times].reshape(-1, 1, 1, 1)
    as_noise = [abar.sqrt() * v + (1 - abar).sqrt() * batch.noisy_latents for v in outputs]
    errors = [(eps - noise).square().flatten(1).mean(1) for eps in as_noise]
    changes = errors[0] - errors[1]
    expected = {
        DPO: lambda: dpo_loss(changes, 50.0),
        KTO: lambda: kto_loss(changes, batch.weights, 20.0),
        MaPO: lambda: mapo_loss(errors[0], objective.beta, objective.form),
        SmPO: lambda: smpo_loss(changes, weights, 50.0),
    }[type(objective)]()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_dspo_gradient_at_the_reference(net, detach):
    """The preference takes beta / 2 off the winners' gradient; there, the gate itself contributes nothing."""
    noisy, target, changes, reference = _pairs(net)
    loss = dspo_loss(net(noisy), reference(noisy), target, changes, 0.4, 5000.0, detach)
    sft = gradient(_errors(net, noisy, target)[:6].mean(), net)
    torch.testing.assert_close(gradient(loss, net), (1 - 0.4 / 2) * sft, rtol=1e-9, atol=1e-12)


def test_dspo_gate_follows_the_margin(net):
    """Pairs that are already in order move their winners freely, others are pulled away from the reference."""
    noisy, target, _, reference = _pairs(net, moved=0.1)
    settled, wrong = (torch.tensor([sign] * 6 + [-sign] * 6).double() for sign in (-1.0, 1.0))
    free = dspo_loss(net(noisy), reference(noisy), target, settled, 1.0, 1e4)
    torch.testing.assert_close(free, _errors(net, noisy, target)[:6].mean())
    pulled = dspo_loss(net(noisy), reference(noisy), target, wrong, 1.0, 1e4)
    torch.testing.assert_close(pulled, (reference(noisy)[:6] - target[:6]).square().mean())


def test_spo_closed_form_and_clamp():
    mean, reference_mean, best, worst = (random_latents(5, seed=seed) for seed in range(4))
    sigma = torch.linspace(0.5, 2, 5).double()
    ratios = [spo_log_ratios(x, mean, reference_mean, sigma) for x in (best, worst)]
    inner = ((best - worst) * (mean - reference_mean)).flatten(1).sum(1)
    expected = F.softplus(-10 * inner / (sigma**2 * mean[0].numel())).mean()
    torch.testing.assert_close(spo_loss(*ratios, clip=float("inf")), expected, rtol=1e-12, atol=0)
    assert spo_loss(ratios[0], ratios[0]).item() == pytest.approx(math.log(2))
    far = torch.tensor([3.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = spo_loss(far[:1], far[1:])
    assert loss.item() == pytest.approx(0.1261, abs=1e-4)  # the clamp bounds the logit by 2.007
    assert not torch.autograd.grad(loss, far)[0].any()
    inside = torch.tensor([0.05, -0.05], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(spo_loss(inside[:1], inside[1:]), inside)[0].abs().min() > 0


@pytest.mark.parametrize("far", [1.0, 100.0, 1e30])
def test_spo_far_outside_the_clamp_has_no_gradient(far):
    """Also where the likelihood ratio itself overflows."""
    ratios = torch.tensor([far, -far, -far, far], requires_grad=True)
    loss = spo_loss(*ratios.chunk(2))
    assert loss.item() == pytest.approx(
        0.5 * sum(math.log1p(math.exp(side * 10 * math.log(1.1 / 0.9))) for side in (1, -1))
    )
    assert torch.autograd.grad(loss, ratios)[0].tolist() == [0.0] * 4


def test_spo_mask_does_not_depend_on_how_a_batch_is_cut():
    winners, losers = torch.tensor([0.01, 0.03, -0.02, 0.0]), torch.zeros(4)
    mask = torch.tensor([True, False, True, True])
    parts = [spo_loss(winners[i], losers[i], mask=mask[i]) for i in (slice(0, 2), slice(2, 4))]
    whole = spo_loss(winners, losers, mask=mask)
    torch.testing.assert_close(whole, sum(parts) / 2)
    torch.testing.assert_close(whole, 0.75 * spo_loss(winners[mask], losers[mask]))
    winners, losers = winners[:2], losers[:2]
    assert spo_loss(winners, losers, mask=torch.tensor([False, False])).item() == 0.0


def test_pair_metrics(net):
    noisy, target, changes, reference = _pairs(net, moved=0.1)
    metrics = DPO().loss(_batch(noisy, target, torch.ones(12)), net(noisy), reference(noisy)).metrics
    winners, losers = changes.chunk(2)
    assert metrics["accuracy"].item() == pytest.approx((winners < losers).double().mean().item())
    assert metrics["winner_change"].item() == pytest.approx(winners.mean().item(), rel=1e-4)
    assert metrics["loser_change"].item() == pytest.approx(losers.mean().item(), rel=1e-4)


def _objective_of_flags(kind, *flags):
    parser = argparse.ArgumentParser()
    add_fields(parser, TrainingSettings)
    add_objective_options(parser, [kind])
    args = parser.parse_args(["--pretrained_model_name_or_path=x", "--dataset_name=x", *flags])
    objective = objective_from_args(kind, args, [kind])
    check_data_settings(from_args(TrainingSettings, args), objective, [])
    return objective


@pytest.mark.parametrize("kind", [InPO, SmPO])
def test_beta_follows_the_backbone(kind):
    betas = [_objective_of_flags(kind, *flags).beta for flags in ([], ["--backbone=sdxl"])]
    assert betas == [2000.0, 5000.0]
    assert _objective_of_flags(kind, "--backbone=sdxl", "--beta=7").beta == 7.0
    assert _objective_of_flags(DPO, "--backbone=sdxl").beta == DPO().beta


@pytest.mark.parametrize(
    ("kind", "flags", "refused"),
    [
        (DPO, [], False),
        (SmPO, [], True),
        (SmPO, ["--inversion_steps=0"], False),
        (SFTSharpening, [], True),
        (SFTSharpening, ["--num_noises=1"], False),
        (RLHFSharpening, ["--generation_steps=0"], True),
        (SPO, [], True),
    ],
)
def test_an_offset_of_noise_that_is_not_trained_on_is_refused(kind, flags, refused):
    assert _objective_of_flags(kind, *flags, "--noise_offset=0")
    if not refused:
        assert _objective_of_flags(kind, *flags, "--noise_offset=0.1")
        return
    with pytest.raises(ValueError, match=f"--noise_offset: expected 0 for {kind.__name__}, .*found 0.1"):
        _objective_of_flags(kind, *flags, "--noise_offset=0.1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmPO(renoise="often"), "--renoise: expected one of none, final, every, found 'often'"),
        (lambda: SmPO(inverter="both"), "--inverter: expected one of reference, policy, found 'both'"),
        (lambda: SmPO(grid="fine"), "--grid: expected one of consistent, official, found 'fine'"),
        (lambda: SmPO(inversion_steps=-1), "--inversion_steps: expected at least 0, found -1"),
        (lambda: MaPO(form="book"), "--form: expected one of paper, code, found 'book'"),
        (lambda: DPO(beta=-5), "--beta: expected more than 0, found -5"),
        (lambda: DPO(beta=math.nan), "--beta: expected more than 0 and finite, found nan"),
        (lambda: InPO(beta=math.inf), "--beta: expected more than 0 and finite, found inf"),
        (lambda: SmPO(gamma=0), "--gamma: expected more than 0, found 0"),
        (lambda: KTO(beta=0.0), "--beta: expected more than 0, found 0.0"),
        (lambda: KTO(disliked_weight=-1.0), "--disliked_weight: expected at least 0, found -1.0"),
        (lambda: KTO(liked_weight=0, disliked_weight=0), "--liked_weight, --disliked_weight: expected one above 0"),
        (lambda: MaPO(beta=-0.1), "--beta: expected at least 0, found -0.1"),
        (lambda: MaPO(scale=0.0), "--scale: expected more than 0, found 0.0"),
        (lambda: DSPO(beta=5000.0), "--beta: expected at least 0 and at most 1, found 5000.0"),
        (lambda: DSPO(gate_beta=-1.0), "--gate_beta: expected at least 0, found -1.0"),
        (lambda: SPO(clip=-1.0), "--clip: expected more than 0, found -1.0"),
        (lambda: SPO(clip=math.nan), "--clip: expected more than 0 and finite, found nan"),
        (lambda: SPO(num_candidates=1), "--num_candidates: expected at least 2, found 1"),
        (lambda: SPO(chain_steps=0), "--chain_steps: expected at least 1, found 0"),
        (lambda: SPO(first_step=-3), "--first_step: expected at least 0 and at most 19, found -3"),
        (lambda: SPO(first_step=20), "--first_step: expected at least 0 and at most 19, found 20"),
        (lambda: SPO(threshold=-0.1), "--threshold: expected at least 0 and at most 1, found -0.1"),
        (lambda: SPO(guidance_scale=math.nan), "--guidance_scale: expected at least 0 and finite, found nan"),
        (lambda: SFTSharpening(num_states=0), "--num_states: expected at least 1, found 0"),
        (lambda: RLHFSharpening(generation_steps=-1), "--generation_steps: expected at least 0, found -1"),
        (lambda: RLHFSharpening(eta=math.inf), "--eta: expected at least 0 and finite, found inf"),
        (lambda: RLHFSharpening(beta=-1), "--beta: expected more than 0, found -1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
