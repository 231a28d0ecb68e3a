# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Objectives that follow or sample trajectories, with a small network in the UNet's place."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from diffusers_craft.objectives.base import Noised, best_and_worst, guided
from diffusers_craft.objectives.craft import craft_loss, denoising_errors
from diffusers_craft.objectives.ddim import clean_estimate, ddim_mean_std, ddim_move, ddim_sample
from diffusers_craft.objectives.dpo import DPO, dpo_loss
from diffusers_craft.objectives.inpo import InPO
from diffusers_craft.objectives.sharpening import (
    RLHFSharpening,
    SFTSharpening,
    follow,
    sharpening_preference_loss,
)
from diffusers_craft.objectives.smpo import SmPO
from diffusers_craft.objectives.spo import SPO


SHAPE = (4, 3, 3)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
ALPHAS = DDIMScheduler(**SCHEDULE).alphas_cumprod.double()


class Context:
    """A policy and a reference of one kind, rewards by a function, numbers by purpose."""

    def __init__(self, net, batch, reward=None, reference=None):
        self.net, self.batch, self.reward = net, batch, reward
        self.frozen = copy.deepcopy(net if reference is None else reference)
        self.alphas_cumprod, self.scored, self.calls = ALPHAS, [], 0

    def run(self, net, latents, timesteps, conditioning):
        return net(latents + 0.001 * timesteps.reshape(-1, 1, 1, 1)) + conditioning["c"].reshape(-1, 1, 1, 1)

    @torch.no_grad()
    def predict(self, latents, timesteps, conditioning):
        self.calls += len(latents)
        return self.run(self.net, latents, timesteps, conditioning)

    @torch.no_grad()
    def predict_reference(self, latents, timesteps, conditioning):
        return self.run(self.frozen, latents, timesteps, conditioning)

    def score(self, latents, rows):
        self.scored.append((latents, rows))
        return self.reward(latents, rows)

    def empty_conditioning(self, conditioning):
        return {"c": torch.zeros_like(conditioning["c"])}

    def normal(self, purpose, *shape):
        generator = torch.Generator().manual_seed(sum(purpose.encode()))
        return torch.randn(len(self.batch.latents), *shape, generator=generator, dtype=torch.float64)

    def uniform(self, purpose, *shape):
        generator = torch.Generator().manual_seed(sum(purpose.encode()))
        return torch.rand(len(self.batch.latents), *shape, generator=generator, dtype=torch.float64)

    def outputs(self, noised):
        arguments = (noised.noisy_latents, noised.timesteps, noised.conditioning)
        return self.run(self.net, *arguments), self.predict_reference(*arguments)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 36)]
    return torch.nn.Sequential(*layers, torch.nn.Unflatten(1, SHAPE)).double()


def _random(n, seed):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(timesteps=(400, 700, 30), pairs=False):
    """Micro-batch with forward noise; with `pairs`, winners then losers that share time and noise."""
    count = len(timesteps)
    times, noise = torch.tensor(timesteps), _random(count, 1)
    latents, advantages = _random(count, 2), torch.ones(count)
    conditioning = {"c": torch.linspace(0, 0.2, count).double()}
    if pairs:
        times, noise = times.repeat(2), noise.repeat(2, 1, 1, 1)
        latents, advantages = _random(2 * count, 2), torch.cat([advantages, -advantages])
        conditioning = {"c": conditioning["c"].repeat(2)}
    abar = ALPHAS[times].reshape(-1, 1, 1, 1)
    return SimpleNamespace(
        latents=latents,
        noise=noise,
        timesteps=times,
        conditioning=conditioning,
        noisy_latents=abar.sqrt() * latents + (1 - abar).sqrt() * noise,
        target=noise,
        advantages=advantages,
    )


def _gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])


def closeness(latents, rows):
    return -(latents.flatten(1).mean(1) - 0.3).abs()


def abstaining(*places):
    """`closeness` that gives no judgement at these places of every call."""

    def reward(latents, rows):
        scores = closeness(latents, rows)
        scores[list(places)] = math.nan
        return scores

    return reward


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
    batch = _batch(timesteps=(400, 700, 30))
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
    rows = judged.repeat(len(noised.advantages) // len(judged))
    assert (noised.advantages[rows] != 0).all() and not noised.advantages[~rows].any()
    # The first latent's choice is that of the reward that always judges, and the loss is that of two latents over three.
    first = noised.extras["unit"] == 0
    assert torch.equal(noised.noisy_latents[: len(first)][first], unaware.noisy_latents[: len(first)][first])
    two = noised._replace(
        noisy_latents=noised.noisy_latents[rows],
        timesteps=noised.timesteps[rows],
        conditioning={"c": noised.conditioning["c"][rows]},
        target=noised.target[rows],
        advantages=noised.advantages[rows],
        extras=noised.extras
        | {name: noised.extras[name][judged] for name in ("unit", "step")}
        | {name: noised.extras[name][:2] for name in ("gaps", "judged")}
        | {"num_units": 2},
    )
    expected = objective.loss(two, *context.outputs(two)).loss * 2 / 3
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(_gradient(found.loss, net), _gradient(expected, net))


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
    batch = _batch()
    context = Context(net, batch, lambda latents, rows: torch.full((len(latents),), math.nan))
    noised = objective.prepare(batch, context)
    loss, metrics = objective.loss(noised, *context.outputs(noised))
    assert loss.item() == 0.0 and not _gradient(loss, net).any()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["states_used" if isinstance(objective, SPO) else "units_used"].item() == 0.0


def test_a_state_past_zero_needs_no_judgement(net):
    """The second state of a latent at t = 10 is masked out, and with it what the reward says of it."""
    batch = _batch(timesteps=(10,))
    calls = iter([closeness, lambda latents, rows: torch.full((len(latents),), math.nan)])
    context = Context(net, batch, lambda latents, rows: next(calls)(latents, rows))
    noises = torch.stack([batch.noise, _random(1, 5)], dim=1)
    paths = follow(batch.latents, noises, batch.timesteps, batch.conditioning, context, num_states=2, stride=20)
    assert paths.valid[:, 0].tolist() == [True, False] and paths.rewards.isfinite().all()


def test_spo_leaves_states_out_that_the_reward_does_not_judge(net):
    """All candidates but one of the first prompt's abstain: its states do not count, the other's do."""
    batch = _batch(timesteps=(1, 1))
    options = {"chain_steps": 5, "first_step": 1, "states_per_prompt": 4, "num_candidates": 3, "guidance_scale": 1.0}
    context = Context(net, batch, abstaining(0, 2))
    noised = SPO(**options).prepare(batch, context)
    counts = noised.extras["gap"].reshape(4, 2) > 0
    assert not counts[:, 0].any() and counts[:, 1].all()
    output = SPO(**options).loss(noised, *context.outputs(noised))
    assert output.metrics["states_used"].item() == 0.5
    assert output.loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert output.metrics["accuracy"].item() == 0.5  # at the reference nothing has an order


def test_sharpening_with_one_noise_and_one_state_is_fine_tuning(net):
    batch = _batch()
    context = Context(net, batch)
    objective = SFTSharpening(num_noises=1, num_states=1)
    noised = objective.prepare(batch, context)
    assert not objective.uses_reward and not context.scored and context.calls == 0
    loss = objective.loss(noised, context.outputs(noised)[0]).loss
    prediction = context.run(net, batch.noisy_latents, batch.timesteps, batch.conditioning)
    sft = craft_loss(prediction, batch.target, torch.ones(3))
    torch.testing.assert_close(loss, sft)
    torch.testing.assert_close(_gradient(loss, net), _gradient(sft, net))


def test_trajectories_are_ddim_paths_cut_at_zero(net):
    batch = _batch(timesteps=(400, 30, 10))
    context = Context(net, batch, closeness)
    noises = torch.stack([batch.noise, _random(3, 5)], dim=1)
    paths = follow(batch.latents, noises, batch.timesteps, batch.conditioning, context, num_states=3, stride=20)
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
            total += closeness(clean_estimate(x, noise, abar), None)
            x = ddim_move(x, noise, abar, ALPHAS[time - 20].reshape(1))
        assert paths.rewards[0, way].item() == pytest.approx(total.item() / 3)


def test_sharpening_picks_the_noise_whose_path_scores_best(net):
    batch = _batch()
    context = Context(net, batch, closeness)
    objective = SFTSharpening(num_noises=3, num_states=2)
    noised = objective.prepare(batch, context)
    noises = torch.cat([batch.noise[:, None], context.normal("noises", 2, *SHAPE)], dim=1)
    paths = follow(batch.latents, noises, batch.timesteps, batch.conditioning, context, 2, 20)
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
    batch = _batch(timesteps=(400, 700, 500))
    context = Context(net, batch, closeness)
    SFTSharpening(num_noises=4, num_states=3).prepare(batch, context)
    assert context.calls == 3 * 4 * 3
    assert sum(len(latents) for latents, _ in context.scored) == 3 * 4 * 3


def test_a_constant_reward_takes_the_first_noise(net):
    batch = _batch()
    context = Context(net, batch, lambda latents, rows: torch.zeros(len(latents)))
    noised = SFTSharpening(num_noises=3, num_states=1).prepare(batch, context)
    assert torch.equal(noised.target, batch.noise)


def test_a_constant_model_has_the_same_error_at_every_state():
    batch = _batch(timesteps=(500,))
    fixed = _random(1, 9)
    net = torch.nn.Identity()
    context = Context(net, batch, closeness)
    context.run = lambda net, latents, timesteps, conditioning: fixed.expand(len(latents), *SHAPE)
    objective = SFTSharpening(num_noises=1, num_states=3)
    noised = objective.prepare(batch, context)
    errors = denoising_errors(context.outputs(noised)[0], noised.target)
    assert len(errors) == 3 and errors.max() - errors.min() == 0


def test_rlhf_sharpening_at_the_reference(net):
    """Our logit is 0 for any number of states; the released code's is not, since it knows the first state only."""
    batch = _batch(timesteps=(400, 700))
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
    batch, reference = _batch(timesteps=(400, 700, 30)), copy.deepcopy(net)
    with torch.no_grad():
        reference[1].weight += 0.05
    context = Context(net, batch, closeness, reference)
    objective = RLHFSharpening(num_noises=2, num_states=1, generation_steps=0, eta=0.0, beta=3.0)
    assert (objective.unit, RLHFSharpening().unit) == ("single", "prompt")
    noised = objective.prepare(batch, context)
    ours, metrics = objective.loss(noised, *context.outputs(noised))

    noises, abar = context.normal("noises", 2, *SHAPE), ALPHAS[batch.timesteps].reshape(-1, 1, 1, 1)
    noisy = [abar.sqrt() * batch.latents + (1 - abar).sqrt() * noises[:, way] for way in (0, 1)]
    rewards = []
    for x in noisy:
        noise = context.predict(x, batch.timesteps, batch.conditioning)
        rewards.append(closeness((x - (1 - abar).sqrt() * noise) / abar.sqrt(), None))
    order = torch.where(rewards[0] >= rewards[1], 0, 1).tolist()
    assert set(order) == {0, 1}
    sides = [[way if side == 0 else 1 - way for way in order] for side in (0, 1)]
    pairs = Noised(
        torch.stack([noisy[way][row] for ways in sides for row, way in enumerate(ways)]),
        batch.timesteps.repeat(2),
        {"c": batch.conditioning["c"].repeat(2)},
        torch.stack([noises[row, way] for ways in sides for row, way in enumerate(ways)]),
        torch.ones(6),
    )
    dpo, expected = DPO(beta=6.0).loss(pairs, *context.outputs(pairs))
    torch.testing.assert_close(ours, dpo)
    torch.testing.assert_close(_gradient(ours, net), _gradient(dpo, net))
    assert metrics["accuracy"] == expected["accuracy"]
    at_reference = objective.loss(noised, *[context.outputs(noised)[1]] * 2).metrics
    assert at_reference["accuracy"].item() == 0.5


def test_rlhf_sharpening_compares_best_and_worst_of_what_it_generates(net):
    batch = _batch(timesteps=(400, 700))
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
    assert (noised.advantages.chunk(2)[0] > 0).all() and (noised.advantages.chunk(2)[1] < 0).all()


def test_rlhf_sharpening_with_an_image_for_each_noise(net):
    """The released code's data: n images, each noised with the noise that it came from."""
    batch = _batch(timesteps=(400, 700))
    context = Context(net, batch, closeness)
    objective = RLHFSharpening(
        num_noises=3, num_states=1, generation_steps=4, guidance_scale=1.0, image_sharing="n", fresh_noise=False
    )
    noised = objective.prepare(batch, context)
    starts = context.normal("generation", 3, *SHAPE)
    rewards = context.scored[0][0].reshape(2, 3, *SHAPE)
    winners, states = noised.target.chunk(2)[0], noised.noisy_latents.chunk(2)[0]
    for unit, time in enumerate((400, 700)):
        conditioning = {"c": batch.conditioning["c"][unit : unit + 1]}
        best = closeness(rewards[unit], None).argmax()
        made = ddim_sample(
            starts[unit, best][None], 4, ALPHAS, lambda x, t, given=conditioning: context.predict(x, t, given)
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


@pytest.mark.parametrize("objective", [SmPO(), InPO(), SmPO(renoise="every", inverter="policy")])
def test_inverted_pairs_stand_at_the_time_of_their_label(net, objective):
    """x~ = sqrt(abar) x_0 + sqrt(1 - abar) target, with abar of the UNet's label, winner and loser at one time."""
    batch = _batch(timesteps=(5, 333, 999), pairs=True)
    noised = objective.prepare(batch, Context(net, batch))
    assert torch.equal(*noised.timesteps.chunk(2))
    assert noised.timesteps[2] == 999 and (noised.timesteps > 0).all()
    abar = ALPHAS[noised.timesteps].reshape(-1, 1, 1, 1)
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
    batch = _batch(timesteps=(150, 350, 650), pairs=True)
    fixed = _random(1, 9)
    context = Context(torch.nn.Identity(), batch)
    context.run = lambda net, latents, timesteps, conditioning: fixed.expand(len(latents), *SHAPE)
    objective = SmPO(inversion_steps=5, grid="official", inverter="policy")
    noised = objective.prepare(batch, context)
    assert torch.equal(noised.timesteps, batch.timesteps)
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
    batch = _batch(timesteps=(0, 1), pairs=True)
    noised = SmPO(grid="official").prepare(batch, Context(net, batch))
    assert torch.equal(noised.noisy_latents, batch.latents)
    abar = ALPHAS[noised.timesteps].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(noised.target, (1 - abar.sqrt()) / (1 - abar).sqrt() * batch.latents)


def test_inpo_is_smpo_with_hard_labels_and_no_renoise(net):
    batch, reference = _batch(timesteps=(5, 333, 999), pairs=True), copy.deepcopy(net)
    with torch.no_grad():
        reference[1].weight += 0.05
    losses = []
    for objective in (InPO(inversion_steps=7), SmPO(inversion_steps=7, renoise="none")):
        context = Context(net, batch, reference=reference)
        noised = objective.prepare(batch, context)
        losses.append(objective.loss(noised, *context.outputs(noised)).loss)
    assert torch.equal(*losses) and losses[0].item() != pytest.approx(math.log(2), rel=1e-3)
    assert torch.equal(*(_gradient(loss, net) for loss in losses))
    renoised = SmPO(inversion_steps=7).prepare(batch, Context(net, batch, reference=reference))
    assert not torch.equal(renoised.target, noised.target)


def test_smpo_without_inversion_is_forward_noising(net):
    batch = _batch(pairs=True)
    noised = SmPO(inversion_steps=0).prepare(batch, Context(net, batch))
    assert noised.noisy_latents is batch.noisy_latents and noised.target is batch.target


def test_spo_at_the_reference_and_its_pairs(net):
    batch = _batch(timesteps=(1, 1))
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
    labels = noised.timesteps.chunk(2)[0]
    noise = guided(context.predict, extras["states"], labels, half, empty, 2.0)
    mean, sigma = ddim_mean_std(extras["states"], noise, extras["from"], extras["to"])
    for name in ("best", "worst"):
        standard = (extras[name] - mean) / sigma.reshape(-1, 1, 1, 1)
        assert standard.abs().max() < 5 and 0.5 < standard.std() < 1.5
    assert (extras["gap"] > 0).all()


def test_spo_chain_goes_on_whatever_the_scores(net):
    """The next state is the same for a reward and its opposite, while winners and losers swap."""
    batch = _batch(timesteps=(1, 1))
    options = {"chain_steps": 5, "first_step": 1, "states_per_prompt": 4, "guidance_scale": 1.0}
    liked = SPO(**options).prepare(batch, Context(net, batch, closeness)).extras
    disliked = SPO(**options).prepare(batch, Context(net, batch, lambda x, rows: -closeness(x, rows))).extras
    assert torch.equal(liked["states"], disliked["states"])
    assert torch.equal(liked["best"], disliked["worst"]) and torch.equal(liked["worst"], disliked["best"])


def test_spo_threshold_leaves_unclear_pairs_out(net):
    batch = _batch(timesteps=(1, 1))
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
    batch = _batch()
    with pytest.raises(ValueError, match=message):
        objective.prepare(batch, Context(net, batch, closeness))


def test_spo_states_must_fit_the_chain():
    with pytest.raises(ValueError, match="--states_per_prompt: expected 1 to 2 .*found 3"):
        SPO(chain_steps=5, first_step=3, states_per_prompt=3)
