# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Inversion (InPO, SmPO), sampled chains (SPO), and rewards that abstain, with a small network in the UNet's place."""

import copy
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler
from objective_driver import (
    ALPHAS,
    PATH,
    SCHEDULE,
    SHAPE,
    Context,
    abstaining,
    closeness,
    gradient,
    micro_batch,
    random_latents,
    small_net,
)

from diffusers_craft import SPO, InPO, RLHFSharpening, SFTSharpening, SmPO
from diffusers_craft.objectives.base import best_and_worst
from diffusers_craft.objectives.chains import guided
from diffusers_craft.objectives.sharpening import follow


@pytest.fixture
def net():
    return small_net()


def test_best_and_worst_are_of_the_finite_rewards():
    nan, inf = math.nan, math.inf
    rewards = torch.tensor([[1.0, nan, 3.0], [nan, nan, 2.0], [nan, nan, nan], [-inf, 0.5, 0.0], [2.0, 2.0, 2.0]])
    best, worst, gap, judged = best_and_worst(rewards)
    assert judged.tolist() == [True, False, False, True, True]
    assert best[judged].tolist() == [2, 1, 0] and worst[judged].tolist() == [0, 2, 0]
    assert gap.tolist() == [2.0, 0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("kind", [SFTSharpening, RLHFSharpening])
def test_latents_that_the_reward_does_not_judge_add_nothing(net, kind):
    """Of three latents with three noises: all judged, two judged, one judged. The mean stays over three."""
    batch = micro_batch(times=(400, 700, 30))
    options = {"num_noises": 3, "num_states": 2}
    if kind is RLHFSharpening:
        options |= {"generation_steps": 0, "eta": 0.0}
    objective = kind(**options)
    context, sure = Context(net, batch, abstaining(3, 6, 7)), Context(net, batch, closeness)
    noised, unaware = objective.prepare(batch, context), objective.prepare(batch, sure)
    assert noised.extras["judged"].tolist() == [True, True, False]
    found = objective.loss(noised, *context.outputs(noised))
    assert found.metrics["units_used"].item() == pytest.approx(2 / 3)
    judged = noised.extras["unit"] < 2
    rows = judged.repeat(len(noised.weights) // len(judged))
    assert (noised.weights[rows] != 0).all() and not noised.weights[~rows].any()
    # The first latent's choice is that of the reward that always judges, and the loss is that of two latents over three.
    first = noised.extras["unit"] == 0
    assert torch.equal(noised.noisy_latents[: len(first)][first], unaware.noisy_latents[: len(first)][first])
    two = noised._replace(
        noisy_latents=noised.noisy_latents[rows],
        times=noised.times[rows],
        timesteps=noised.timesteps[rows],
        conditioning={"c": noised.conditioning["c"][rows]},
        target=noised.target[rows],
        weights=noised.weights[rows],
        extras=noised.extras
        | {name: noised.extras[name][judged] for name in ("unit", "step")}
        | {name: noised.extras[name][:2] for name in ("gaps", "judged")}
        | {"num_units": 2},
    )
    expected = objective.loss(two, *context.outputs(two)).loss * 2 / 3
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient(found.loss, net), gradient(expected, net))


@pytest.mark.parametrize(
    "objective",
    [
        SFTSharpening(),
        RLHFSharpening(generation_steps=2),
        RLHFSharpening(generation_steps=2, form="code"),
        SPO(chain_steps=5, first_step=1, states_per_prompt=2, guidance_scale=1.0),
    ],
    ids=["sft", "rlhf", "rlhf code", "spo"],
)
def test_a_reward_that_never_judges_teaches_nothing(net, objective):
    batch = micro_batch()
    context = Context(net, batch, lambda latents, rows: torch.full((len(latents),), math.nan))
    noised = objective.prepare(batch, context)
    loss, metrics = objective.loss(noised, *context.outputs(noised))
    assert loss.item() == 0.0 and not gradient(loss, net).any()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["states_used" if isinstance(objective, SPO) else "units_used"].item() == 0.0


def test_a_state_past_zero_needs_no_judgement(net):
    """The second state of a latent at t = 10 is masked out, and with it what the reward says of it."""
    batch = micro_batch(times=(10,))
    calls = iter([closeness, lambda latents, rows: torch.full((len(latents),), math.nan)])
    context = Context(net, batch, lambda latents, rows: next(calls)(latents, rows))
    noises = torch.stack([batch.noise, random_latents(1, 5)], dim=1)
    paths = follow(
        batch.latents[:, None].expand_as(noises),
        noises,
        batch,
        context,
        num_states=2,
        stride=20,
    )
    assert paths.valid[:, 0].tolist() == [True, False] and paths.rewards.isfinite().all()


def test_spo_leaves_states_out_that_the_reward_does_not_judge(net):
    """All candidates but one of the first prompt's abstain: its states do not count, the other's do."""
    batch = micro_batch(times=(1, 1))
    options = {"chain_steps": 5, "first_step": 1, "states_per_prompt": 4, "num_candidates": 3, "guidance_scale": 1.0}
    context = Context(net, batch, abstaining(0, 2))
    noised = SPO(**options).prepare(batch, context)
    counts = noised.extras["gap"].reshape(4, 2) > 0
    assert not counts[:, 0].any() and counts[:, 1].all()
    output = SPO(**options).loss(noised, *context.outputs(noised))
    assert output.metrics["states_used"].item() == 0.5
    assert output.loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert output.metrics["accuracy"].item() == 0.5  # at the reference nothing has an order


@pytest.mark.parametrize("objective", [SmPO(), InPO(), SmPO(renoise="every", inverter="policy")])
def test_inverted_pairs_stand_at_the_time_of_their_label(net, objective):
    """x~ = sqrt(abar) x_0 + sqrt(1 - abar) target, with abar of the UNet's label, winner and loser at one time."""
    batch = micro_batch(times=(5, 333, 999), pairs=True)
    noised = objective.prepare(batch, Context(net, batch))
    assert torch.equal(*noised.times.chunk(2))
    assert noised.times[2] == 999 and (noised.times > 0).all()
    abar = ALPHAS[noised.times].reshape(-1, 1, 1, 1)
    rebuilt = abar.sqrt() * batch.latents + (1 - abar).sqrt() * noised.target
    torch.testing.assert_close(rebuilt, noised.noisy_latents)


def test_consistent_times_are_uniform_on_the_grid():
    drawn = torch.arange(1000)
    times, num_steps, labels = SmPO(inversion_steps=8)._times(drawn, 1000)
    assert labels.bincount(minlength=1000)[times].tolist() == [125] * 8
    assert all(times[steps - 1] == label for steps, label in zip(num_steps.tolist(), labels.tolist()))


def test_the_official_grid_mixes_image_into_the_target():
    """The released code's inversion, by diffusers' scheduler as SD1.5 configures it; for a constant prediction e its
    target is a x_0 + b e with (a, b) != (0, 1): the label is another time than the one reached."""
    batch = micro_batch(times=(150, 350, 650), pairs=True)
    fixed = random_latents(1, 9)
    context = Context(torch.nn.Identity(), batch)
    context.run = lambda net, latents, times, conditioning: fixed.expand(len(latents), *SHAPE)
    objective = SmPO(inversion_steps=5, grid="official", inverter="policy")
    noised = objective.prepare(batch, context)
    assert torch.equal(noised.times, batch.times)
    scheduler = DDIMInverseScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    for row, (drawn, off) in enumerate(((150, 0.9), (350, 0.3), (650, 0.05))):
        noisy, abar = batch.latents[row], ALPHAS[drawn]
        for label in scheduler.timesteps[scheduler.timesteps < drawn]:
            noisy = scheduler.step(fixed[0], label, noisy).prev_sample
        expected = (noisy - abar.sqrt() * batch.latents[row]) / (1 - abar).sqrt()
        torch.testing.assert_close(noised.target[row], expected, rtol=1e-5, atol=1e-5)
        assert (expected - fixed[0]).norm() > off * fixed.norm()
    consistent = SmPO(inversion_steps=5, inverter="policy").prepare(batch, context)
    torch.testing.assert_close(consistent.target, fixed.expand(6, *SHAPE), rtol=0, atol=1e-10)


def test_the_official_grid_may_visit_no_point_at_all(net):
    """At drawn times 0 and 1 the image stays clean, and the target is a multiple of it."""
    batch = micro_batch(times=(0, 1), pairs=True)
    noised = SmPO(grid="official").prepare(batch, Context(net, batch))
    assert torch.equal(noised.noisy_latents, batch.latents)
    abar = ALPHAS[noised.times].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(noised.target, (1 - abar.sqrt()) / (1 - abar).sqrt() * batch.latents)


def test_inpo_is_smpo_with_hard_labels_and_no_renoise(net):
    batch, reference = micro_batch(times=(5, 333, 999), pairs=True), copy.deepcopy(net)
    with torch.no_grad():
        reference[1].weight += 0.05
    losses = []
    for objective in (InPO(inversion_steps=7), SmPO(inversion_steps=7, renoise="none")):
        context = Context(net, batch, reference=reference)
        noised = objective.prepare(batch, context)
        losses.append(objective.loss(noised, *context.outputs(noised)).loss)
    assert torch.equal(*losses) and losses[0].item() != pytest.approx(math.log(2), rel=1e-3)
    assert torch.equal(*(gradient(loss, net) for loss in losses))
    renoised = SmPO(inversion_steps=7).prepare(batch, Context(net, batch, reference=reference))
    assert not torch.equal(renoised.target, noised.target)


def test_smpo_without_inversion_is_forward_noising(net):
    batch = micro_batch(pairs=True)
    noised = SmPO(inversion_steps=0).prepare(batch, Context(net, batch))
    assert noised is batch


def test_spo_at_the_reference_and_its_pairs(net):
    batch = micro_batch(times=(1, 1))
    context = Context(net, batch, closeness)
    objective = SPO(chain_steps=6, first_step=2, states_per_prompt=3, num_candidates=5, guidance_scale=2.0)
    noised = objective.prepare(batch, context)
    extras = noised.extras
    assert len(noised.noisy_latents) == 2 * 2 * 3  # guidance, prompts, states
    prediction, reference = context.outputs(noised)
    output = objective.loss(noised, prediction, reference)
    assert output.loss.item() == pytest.approx(math.log(2), rel=1e-6)
    # Both next states lie on the chain's own Gaussian, and the winner scores higher.
    empty = {"c": torch.zeros(len(extras["states"])).double()}
    half = {"c": noised.conditioning["c"].chunk(2)[0]}
    labels = noised.times.chunk(2)[0]
    noise = guided(context.predict, extras["states"], labels, half, empty, 2.0)
    mean, sigma = PATH.random_move(extras["states"], noise, extras["from"], extras["to"])
    for name in ("best", "worst"):
        standard = (extras[name] - mean) / sigma.reshape(-1, 1, 1, 1)
        assert standard.abs().max() < 5 and 0.5 < standard.std() < 1.5
    assert (extras["gap"] > 0).all()


def test_spo_chain_goes_on_whatever_the_scores(net):
    """The next state is the same for a reward and its opposite, while winners and losers swap."""
    batch = micro_batch(times=(1, 1))
    options = {"chain_steps": 5, "first_step": 1, "states_per_prompt": 4, "guidance_scale": 1.0}
    liked = SPO(**options).prepare(batch, Context(net, batch, closeness)).extras
    disliked = SPO(**options).prepare(batch, Context(net, batch, lambda x, rows: -closeness(x, rows))).extras
    assert torch.equal(liked["states"], disliked["states"])
    assert torch.equal(liked["best"], disliked["worst"]) and torch.equal(liked["worst"], disliked["best"])


def test_spo_threshold_leaves_unclear_pairs_out(net):
    batch = micro_batch(times=(1, 1))
    context = Context(net, batch, lambda latents, rows: 1e-3 * closeness(latents, rows))
    objective = SPO(chain_steps=5, first_step=1, states_per_prompt=4, threshold=0.3, guidance_scale=1.0)
    noised = objective.prepare(batch, context)
    output = objective.loss(noised, *context.outputs(noised))
    assert output.loss.item() == 0.0 and output.metrics["states_used"].item() == 0.0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (InPO(inversion_steps=2000), "--inversion_steps: expected at least 0 and at most 1000, found 2000"),
        (SmPO(inversion_steps=1001, grid="official"), "--inversion_steps: .* at most 1000, found 1001"),
        (SFTSharpening(grid_steps=5000), "--grid_steps: expected at least 1 and at most 1000, found 5000"),
        (RLHFSharpening(generation_steps=2000), "--generation_steps: .* at most 1000, found 2000"),
        (SPO(chain_steps=501), "--chain_steps: expected at least 1 and at most 500, found 501"),
    ],
)
def test_steps_must_fit_the_schedule(net, objective, message):
    batch = micro_batch()
    with pytest.raises(ValueError, match=message):
        objective.prepare(batch, Context(net, batch, closeness))


def test_spo_states_must_fit_the_chain():
    with pytest.raises(ValueError, match="--states_per_prompt: expected 1 to 2 .*found 3"):
        SPO(chain_steps=5, first_step=3, states_per_prompt=3)
