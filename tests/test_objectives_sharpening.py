# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-Sharpening: its trajectories, its choices, and what its losses become in the limit."""

import copy
import math

import pytest
import torch
from objective_driver import ALPHAS, PATH, SHAPE, Context, closeness, gradient, micro_batch, random_latents, small_net

from diffusers_craft import DPO, RLHFSharpening, SFTSharpening, craft_loss, denoising_errors
from diffusers_craft.objectives.base import Batch
from diffusers_craft.objectives.chains import inversion_times, sample
from diffusers_craft.objectives.sharpening import follow
from diffusers_craft.scripts import dpo_loss, sharpening_preference_loss


@pytest.fixture
def net():
    return small_net()


def test_sharpening_with_one_noise_and_one_state_is_fine_tuning(net):
    batch = micro_batch()
    context = Context(net, batch)
    objective = SFTSharpening(num_noises=1, num_states=1)
    noised = objective.prepare(batch, context)
    assert not objective.uses_reward and not context.scored and context.calls == 0
    loss = objective.loss(noised, context.outputs(noised)[0]).loss
    prediction = context.run(net, batch.noisy_latents, batch.times, batch.conditioning)
    sft = craft_loss(prediction, batch.target, torch.ones(3))
    torch.testing.assert_close(loss, sft)
    torch.testing.assert_close(gradient(loss, net), gradient(sft, net))


def test_trajectories_are_ddim_paths_cut_at_zero(net):
    batch = micro_batch(times=(400, 30, 10))
    context = Context(net, batch, closeness)
    noises = torch.stack([batch.noise, random_latents(3, 5)], dim=1)
    paths = follow(
        batch.latents[:, None].expand_as(noises),
        noises,
        batch,
        context,
        num_states=3,
        stride=20,
    )
    assert paths.valid.sum(0).tolist() == [3, 2, 1]  # m = 1 + floor(t / stride)
    assert paths.times.tolist() == [[400, 30, 10], [380, 10, 0], [360, 0, 0]]
    for way in range(2):
        x, total = None, 0.0
        for step, time in enumerate((400, 380, 360)):
            abar, label = ALPHAS[time].reshape(1), torch.tensor([time])
            if step == 0:
                x = abar.sqrt() * batch.latents[:1] + (1 - abar).sqrt() * noises[:1, way]
            torch.testing.assert_close(paths.states[step, :1, way], x)
            noise = context.run(net, x, label, {"c": batch.conditioning["c"][:1]}).detach()
            total += closeness(PATH.clean(x, noise, abar), None)
            x = PATH.move(x, noise, abar, ALPHAS[time - 20].reshape(1))
        assert paths.rewards[0, way].item() == pytest.approx(total.item() / 3)


def test_sharpening_picks_the_noise_whose_path_scores_best(net):
    batch = micro_batch()
    context = Context(net, batch, closeness)
    objective = SFTSharpening(num_noises=3, num_states=2)
    noised = objective.prepare(batch, context)
    noises = torch.cat([batch.noise[:, None], context.normal("noises", 2, *SHAPE)], dim=1)
    paths = follow(batch.latents[:, None].expand_as(noises), noises, batch, context, 2, 20)
    best = paths.rewards.argmax(1)
    assert len(set(best.tolist())) > 1  # not always the first
    for row, unit in enumerate(noised.extras["unit"].tolist()):
        assert torch.equal(noised.target[row], noises[unit, best[unit]])
    assert noised.extras["gaps"].tolist() == pytest.approx((paths.rewards.amax(1) - paths.rewards.amin(1)).tolist())
    prediction = context.outputs(noised)[0]
    errors = denoising_errors(prediction, noised.target)
    expected = sum(errors[noised.extras["unit"] == unit].mean() for unit in range(3)) / 3
    torch.testing.assert_close(objective.loss(noised, prediction).loss, expected)


def test_what_a_choice_costs(net):
    """n m predictions and as many scored images a latent, whatever its time."""
    batch = micro_batch(times=(400, 700, 500))
    context = Context(net, batch, closeness)
    SFTSharpening(num_noises=4, num_states=3).prepare(batch, context)
    assert context.calls == 3 * 4 * 3
    assert sum(len(latents) for latents, _ in context.scored) == 3 * 4 * 3


def test_a_constant_reward_takes_the_first_noise(net):
    batch = micro_batch()
    context = Context(net, batch, lambda latents, rows: torch.zeros(len(latents)))
    noised = SFTSharpening(num_noises=3, num_states=1).prepare(batch, context)
    assert torch.equal(noised.target, batch.noise)


def test_a_constant_model_has_the_same_error_at_every_state():
    batch = micro_batch(times=(500,))
    fixed = random_latents(1, 9)
    net = torch.nn.Identity()
    context = Context(net, batch, closeness)
    context.run = lambda net, latents, times, conditioning: fixed.expand(len(latents), *SHAPE)
    objective = SFTSharpening(num_noises=1, num_states=3)
    noised = objective.prepare(batch, context)
    errors = denoising_errors(context.outputs(noised)[0], noised.target)
    assert len(errors) == 3 and errors.max() - errors.min() == 0


def test_rlhf_sharpening_at_the_reference(net):
    """Our logit is 0 for any number of states; the released code's is not, since it knows the first state only."""
    batch = micro_batch(times=(400, 700))
    for states in (1, 3):
        for form in ("margin", "code"):
            context = Context(net, batch, closeness)
            objective = RLHFSharpening(num_states=states, form=form, eta=0.7, generation_steps=4)
            noised = objective.prepare(batch, context)
            loss = objective.loss(noised, *context.outputs(noised)).loss.item()
            gaps = noised.extras["gaps"]
            assert (gaps > 0).all()
            at_zero = torch.nn.functional.softplus(0.7 * gaps) if form == "margin" else math.log(2) + gaps
            if form == "margin" or states == 1:
                assert loss == pytest.approx(at_zero.mean().item(), rel=1e-5)
            else:
                assert loss != pytest.approx(at_zero.mean().item(), rel=1e-2)


@pytest.mark.parametrize(("form", "slopes"), [("margin", None), ("code", -0.5)])
def test_what_the_reward_gap_does_to_the_gradient(form, slopes):
    """dL/dlogit at logit 0: -sigmoid(eta gap) for the margin, -1/2 whatever the gap for the code's form."""
    gaps = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    changes = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    loss = sharpening_preference_loss(changes, gaps, beta=1.0, eta=2.0, form=form)
    (gradient,) = torch.autograd.grad(3 * loss, changes)
    expected = torch.sigmoid(2 * gaps) if slopes is None else torch.full((3,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(gradient[:3], expected)  # dlogit / dchange_w = -beta
    torch.testing.assert_close(gradient[3:], -expected)


def test_rlhf_sharpening_without_margin_is_dpo_with_half_its_beta():
    changes = torch.tensor([0.01, -0.02, 0.005, 0.03], dtype=torch.float64)
    found = sharpening_preference_loss(changes, torch.tensor([1.0, 2.0]), beta=2500.0, eta=0.0)
    torch.testing.assert_close(found, dpo_loss(changes, 5000.0))


def test_rlhf_sharpening_on_the_datas_images_is_dpo(net):
    """eta = 0, one state, no generation: the best and the worst noising of an image are DPO's winner and loser."""
    batch, reference = micro_batch(times=(400, 700, 30)), copy.deepcopy(net)
    with torch.no_grad():
        reference[1].weight += 0.05
    context = Context(net, batch, closeness, reference)
    objective = RLHFSharpening(num_noises=2, num_states=1, generation_steps=0, eta=0.0, beta=3.0)
    assert (objective.unit, RLHFSharpening().unit) == ("single", "prompt")
    noised = objective.prepare(batch, context)
    ours, metrics = objective.loss(noised, *context.outputs(noised))

    noises, abar = context.normal("noises", 2, *SHAPE), ALPHAS[batch.times].reshape(-1, 1, 1, 1)
    noisy = [abar.sqrt() * batch.latents + (1 - abar).sqrt() * noises[:, way] for way in (0, 1)]
    rewards = []
    for x in noisy:
        noise = context.predict(x, batch.times, batch.conditioning)
        rewards.append(closeness((x - (1 - abar).sqrt() * noise) / abar.sqrt(), None))
    order = torch.where(rewards[0] >= rewards[1], 0, 1).tolist()
    assert set(order) == {0, 1}
    sides = [[way if side == 0 else 1 - way for way in order] for side in (0, 1)]
    pairs = Batch(
        torch.stack([noisy[way][row] for ways in sides for row, way in enumerate(ways)]),
        batch.times.repeat(2),
        batch.times.repeat(2),
        {"c": batch.conditioning["c"].repeat(2)},
        torch.stack([noises[row, way] for ways in sides for row, way in enumerate(ways)]),
        torch.ones(6),
    )
    dpo, expected = DPO(beta=6.0).loss(pairs, *context.outputs(pairs))
    torch.testing.assert_close(ours, dpo)
    torch.testing.assert_close(gradient(ours, net), gradient(dpo, net))
    assert metrics["accuracy"] == expected["accuracy"]
    at_reference = objective.loss(noised, *[context.outputs(noised)[1]] * 2).metrics
    assert at_reference["accuracy"].item() == 0.5


def test_rlhf_sharpening_compares_best_and_worst_of_what_it_generates(net):
    batch = micro_batch(times=(400, 700))
    context = Context(net, batch, closeness)
    objective = RLHFSharpening(num_noises=4, num_states=2, generation_steps=5, guidance_scale=3.0)
    noised = objective.prepare(batch, context)
    assert context.calls == 5 * 2 * 2 + 2 * 4 * 2  # guided moves, then every state of every trajectory
    rewards = torch.stack([closeness(x, None) for x, _ in context.scored])
    means = rewards.reshape(2, 2, 4).mean(0)
    noises = context.normal("noises", 4, *SHAPE)
    winners, losers = noised.target.chunk(2)
    for row, unit in enumerate(noised.extras["unit"].tolist()):
        assert torch.equal(winners[row], noises[unit, means[unit].argmax()])
        assert torch.equal(losers[row], noises[unit, means[unit].argmin()])
    assert (noised.weights.chunk(2)[0] > 0).all() and (noised.weights.chunk(2)[1] < 0).all()


def test_rlhf_sharpening_with_an_image_for_each_noise(net):
    """The released code's data: n images, each noised with the noise that it came from."""
    batch = micro_batch(times=(400, 700))
    context = Context(net, batch, closeness)
    objective = RLHFSharpening(
        num_noises=3, num_states=1, generation_steps=4, guidance_scale=1.0, image_sharing="n", fresh_noise=False
    )
    noised = objective.prepare(batch, context)
    starts = context.normal("generation", 3, *SHAPE)
    rewards = context.scored[0][0].reshape(2, 3, *SHAPE)
    winners, states = noised.target.chunk(2)[0], noised.noisy_latents.chunk(2)[0]
    grid = inversion_times(1000, 4)[::-1]
    for unit, time in enumerate((400, 700)):
        conditioning = {"c": batch.conditioning["c"][unit : unit + 1]}
        best = closeness(rewards[unit], None).argmax()
        made = sample(
            starts[unit, best][None],
            ALPHAS[grid].tolist(),
            PATH,
            lambda x, step, given=conditioning: context.predict(x, torch.tensor([grid[step]]), given),
        )
        abar = ALPHAS[time]
        assert torch.equal(winners[unit], starts[unit, best])
        torch.testing.assert_close(states[unit], abar.sqrt() * made[0] + (1 - abar).sqrt() * starts[unit, best])
    fresh = RLHFSharpening(num_noises=3, num_states=1, generation_steps=4, guidance_scale=1.0, image_sharing="n")
    other = fresh.prepare(batch, Context(net, batch, closeness))
    noises = context.normal("noises", 3, *SHAPE)
    assert all(any(torch.equal(row, noise) for noise in noises.flatten(0, 1)) for row in other.target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_sharing": "two"}, "--image_sharing: expected one of one, n, found 'two'"),
        ({"fresh_noise": False}, "--no-fresh_noise: expected --image_sharing n, found one image for all noises"),
        (
            {"image_sharing": "n", "generation_steps": 0},
            "--image_sharing n: expected images to be generated, found --generation_steps 0",
        ),
    ],
)
def test_rlhf_sharpening_says_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        RLHFSharpening(**options)


def test_rlhf_sharpening_needs_two_noises():
    with pytest.raises(ValueError, match="--num_noises: expected at least 2 trajectories to compare, found 1"):
        RLHFSharpening(num_noises=1)
