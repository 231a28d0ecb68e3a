# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Whatever a model predicts: the same loss and the same gradient from predictions that mean the same.

One network estimates the noise, and a model of any kind says c x_0 + d n of that estimate and of the clean latents that it
implies. Models of noise, velocity and sample are compared on SD's schedule. A flow mixes otherwise, so that its losses are
not those of a schedule with abar; it is compared with noise predictions on its own mixtures, `StraightPath`. Its last time
is left out there: from pure noise a noise prediction tells no clean latents, though a flow does.
"""

import copy

import pytest
import torch
from objective_driver import (
    ALPHAS,
    COEFFICIENTS,
    PATH,
    Context,
    closeness,
    gradient,
    micro_batch,
    small_net,
)

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
    craft_loss,
    denoising_errors,
)
from diffusers_craft.objectives.base import noise_errors
from diffusers_craft.scripts import NoisePath


class StraightPath(NoisePath):
    """Noise predictions on a flow's mixtures."""

    clean_level = 0.0

    def squares(self, levels):
        return (1 - levels).square(), levels.square()

    def mixing(self, levels, like):
        return 1 - levels.reshape(-1, 1, 1, 1), levels.reshape(-1, 1, 1, 1)


SIGMAS = torch.arange(1, 1001, dtype=torch.float64) / 1001
FLOW = NoisePath("flow", SIGMAS, 1000 * SIGMAS)
KINDS = {  # a path of each kind, and noise predictions on the same mixtures
    "v_prediction": (NoisePath("v_prediction", ALPHAS, torch.arange(1000)), PATH),
    "sample": (NoisePath("sample", ALPHAS, torch.arange(1000)), PATH),
    "flow": (FLOW, StraightPath("epsilon", SIGMAS, 1000 * SIGMAS)),
}
ONLINE = {"chain_steps": 6, "first_step": 1, "states_per_prompt": 3}
OBJECTIVES = {
    "dpo": DPO(beta=50.0),
    "kto": KTO(beta=50.0),
    "mapo": MaPO(),
    "mapo code": MaPO(beta=0.1, form="code"),
    "dspo": DSPO(gate_beta=50.0),
    "dspo gate": DSPO(gate_beta=50.0, detach_gate=False),
    "inpo": InPO(beta=50.0, inversion_steps=5),
    "inpo official": InPO(beta=50.0, inversion_steps=5, grid="official"),
    "inpo final": InPO(beta=50.0, inversion_steps=5, renoise="final", inverter="policy"),
    "inpo every": InPO(beta=50.0, inversion_steps=5, renoise="every"),
    "smpo": SmPO(beta=50.0),
    "smpo forward": SmPO(beta=50.0, inversion_steps=0),
    "spo": SPO(guidance_scale=2.0, **ONLINE),
    "spo unclamped": SPO(clip=float("inf"), guidance_scale=1.0, **ONLINE),
    "sharpening sft": SFTSharpening(),
    "sharpening rlhf": RLHFSharpening(beta=50.0, generation_steps=4, guidance_scale=2.0),
    "sharpening rlhf code": RLHFSharpening(beta=50.0, form="code", generation_steps=4),
    "sharpening rlhf n": RLHFSharpening(beta=50.0, generation_steps=4, image_sharing="n", fresh_noise=False),
    "sharpening rlhf data": RLHFSharpening(beta=50.0, generation_steps=0),
}


class KindContext(Context):
    """The driver's network as a model of its path's kind."""

    def run(self, net, latents, times, conditioning):
        noise = super().run(net, latents, times, conditioning)
        if type(self.path) is StraightPath:
            return noise
        levels = self.path.levels[times].reshape(-1, 1, 1, 1)
        a, s, c, d = COEFFICIENTS[self.path.kind](levels)
        return c * (latents - s * noise) / a + d * noise


@pytest.fixture
def in_double(monkeypatch):
    """Losses are computed in float32; here in float64, so that the comparison can ask for nine digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def _context(path, pairs, times=(400, 700, 30, 998)):
    """Micro-batch and context on a path; the reference is another network than the policy."""
    net, batch = small_net(), micro_batch(times, pairs=pairs, path=path)
    reference = copy.deepcopy(net)
    with torch.no_grad():
        reference[1].weight += 0.05
    return batch, KindContext(net, batch, closeness, reference, path)


def _assert_same(found, expected, nets):
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    found, expected = (gradient(loss, net) for loss, net in zip((found, expected), nets))
    assert expected.norm() > 0 and (found - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_on_every_kind(in_double, name, kind):
    objective, outputs, nets = OBJECTIVES[name], [], []
    for path in KINDS[kind]:
        batch, context = _context(path, pairs=objective.unit == "pair")
        prepared = objective.prepare(batch, context)
        outputs.append(objective.loss(prepared, *context.outputs(prepared)))
        nets.append(context.net)
    _assert_same(outputs[0].loss, outputs[1].loss, nets)
    for key, value in outputs[1].metrics.items():
        assert outputs[0].metrics[key].item() == pytest.approx(value.item(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_craft_with_min_snr_and_in_units_of_the_noise(in_double, kind):
    """min(SNR, gamma) on the error of the clean latents is one loss for all kinds, and so is the noise's error.

    Without either, CRAFT and SFT take the error of the output as it is, as diffusers' scripts do.
    """
    losses, units, nets = [], [], []
    for path in KINDS[kind]:
        batch, context = _context(path, pairs=True)  # advantages of both signs
        prediction, _ = context.outputs(batch)
        # `StraightPath` is no kind of its own: its min-SNR weight is that of the noise's errors, min(SNR, gamma) / SNR.
        signal, noise = path.squares(path.levels[batch.times])
        snr_weights = (5.0 * noise / signal).clamp(max=1.0)
        if type(path) is NoisePath:
            snr_weights = path.min_snr_weights(batch.times, 5.0)
        losses.append(craft_loss(prediction, batch.target, batch.weights, snr_weights))
        units.append((batch.weights * noise_errors(batch, prediction)).mean())
        nets.append(context.net)
        plain = (batch.weights * (prediction - batch.target).square().flatten(1).mean(1)).mean()
        torch.testing.assert_close(craft_loss(prediction, batch.target, batch.weights), plain, rtol=1e-12, atol=0)
    _assert_same(*losses, nets)
    _assert_same(*units, nets)


def test_without_signal_a_flow_and_a_velocity_still_teach():
    """At the last time the noise's error says nothing (its scale is 0), while the output's own error does."""
    rescaled = NoisePath("v_prediction", torch.cat([ALPHAS[:-1], torch.zeros(1).double()]), torch.arange(1000))
    for path in (rescaled, NoisePath("flow", torch.arange(1, 1001).double() / 1000, torch.arange(1, 1001))):
        batch = micro_batch((999, 500), path=path)
        prediction = batch.target + 1
        assert noise_errors(batch, prediction)[0] == 0.0 < noise_errors(batch, prediction)[1]
        assert denoising_errors(prediction, batch.target).tolist() == pytest.approx([1.0, 1.0])
