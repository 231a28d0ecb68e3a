# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A small network in the UNet's place, and the context and the micro-batches that objectives are tested with."""

import copy
import math

import torch
from diffusers import DDIMScheduler

from diffusers_craft.models.noise import Draw, diffuse
from diffusers_craft.scripts import NoisePath


SHAPE = (4, 3, 3)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
PATH = NoisePath.from_scheduler(DDIMScheduler(**SCHEDULE))
ALPHAS = PATH.levels  # abar

# a, s, c and d of x = a x_0 + s n and o = c x_0 + d n at a level (abar, or sigma).
COEFFICIENTS = {
    "epsilon": lambda abar: (abar.sqrt(), (1 - abar).sqrt(), 0.0, 1.0),
    "v_prediction": lambda abar: (abar.sqrt(), (1 - abar).sqrt(), -(1 - abar).sqrt(), abar.sqrt()),
    "sample": lambda abar: (abar.sqrt(), (1 - abar).sqrt(), 1.0, 0.0),
    "flow": lambda sigma: (1 - sigma, sigma, -1.0, 1.0),
}


class Context:
    """A policy and a reference of one kind, rewards by a function, numbers by purpose."""

    def __init__(self, net, batch, reward=None, reference=None, path=PATH):
        self.net, self.batch, self.reward = net, batch, reward
        self.frozen = copy.deepcopy(net if reference is None else reference)
        self.path, self.scored, self.calls = path, [], 0

    def run(self, net, latents, times, conditioning):
        return net(latents + 0.001 * times.reshape(-1, 1, 1, 1)) + conditioning["c"].reshape(-1, 1, 1, 1)

    @torch.no_grad()
    def predict(self, latents, times, conditioning):
        self.calls += len(latents)
        return self.run(self.net, latents, times, conditioning)

    @torch.no_grad()
    def predict_reference(self, latents, times, conditioning):
        return self.run(self.frozen, latents, times, conditioning)

    def score(self, latents, rows):
        self.scored.append((latents, rows))
        return self.reward(latents, rows)

    def mean(self, value):
        return value

    def empty_conditioning(self, conditioning):
        return {"c": torch.zeros_like(conditioning["c"])}

    def normal(self, purpose, *shape):
        generator = torch.Generator().manual_seed(sum(purpose.encode()))
        return torch.randn(len(self.batch.latents), *shape, generator=generator, dtype=torch.float64)

    def uniform(self, purpose, *shape):
        generator = torch.Generator().manual_seed(sum(purpose.encode()))
        return torch.rand(len(self.batch.latents), *shape, generator=generator, dtype=torch.float64)

    def outputs(self, batch):
        arguments = (batch.noisy_latents, batch.times, batch.conditioning)
        return self.run(self.net, *arguments), self.predict_reference(*arguments)


def small_net():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 36)]
    return torch.nn.Sequential(*layers, torch.nn.Unflatten(1, SHAPE)).double()


def random_latents(n, seed=1):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def micro_batch(times=(400, 700, 30), pairs=False, path=PATH):
    """Micro-batch with forward noise; with `pairs`, winners then losers that share time and noise."""
    count = len(times)
    times, noise = torch.tensor(times), random_latents(count, 1)
    latents, weights = random_latents(count, 2), torch.ones(count)
    conditioning, slots = {"c": torch.linspace(0, 0.2, count).double()}, torch.arange(count)
    if pairs:
        times, noise = times.repeat(2), noise.repeat(2, 1, 1, 1)
        latents, weights = random_latents(2 * count, 2), torch.cat([weights, -weights])
        conditioning = {"c": conditioning["c"].repeat(2)}
    return diffuse(Draw(latents, noise, times, conditioning, weights, torch.arange(len(times)), slots), path)


def gradient(loss, net):
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
