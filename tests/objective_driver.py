# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A small network in the UNet's place, and the context and the micro-batches that objectives are tested with."""

import copy
import math
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler


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


def small_net():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 36)]
    return torch.nn.Sequential(*layers, torch.nn.Unflatten(1, SHAPE)).double()


def random_latents(n, seed=1):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def micro_batch(timesteps=(400, 700, 30), pairs=False):
    """Micro-batch with forward noise; with `pairs`, winners then losers that share time and noise."""
    count = len(timesteps)
    times, noise = torch.tensor(timesteps), random_latents(count, 1)
    latents, advantages = random_latents(count, 2), torch.ones(count)
    conditioning = {"c": torch.linspace(0, 0.2, count).double()}
    if pairs:
        times, noise = times.repeat(2), noise.repeat(2, 1, 1, 1)
        latents, advantages = random_latents(2 * count, 2), torch.cat([advantages, -advantages])
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
