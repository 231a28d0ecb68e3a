# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Order and randomness of training batches."""

import pytest
import torch

from diffusers_craft.data.rows import shuffled_rows
from diffusers_craft.scripts import NoisePath, TrainingData


PATH = NoisePath("epsilon", torch.linspace(0.999, 0.005, 1000, dtype=torch.float64), torch.arange(1000))


def _data(num_rows: int = 6, flips: int = 1, std: float | None = 0.5) -> TrainingData:
    """Row r has latent r (flipped: -r - 1), prompt row r % 3, size 10 r and advantage 100 r."""
    rows = torch.arange(num_rows).float()
    values = torch.stack([rows, -rows - 1])[:flips]
    latents = values[:, :, None, None, None].expand(flips, num_rows, 4, 8, 8).contiguous()
    prompts = torch.tensor([0.0, 1.0, 2.0, -1.0])[:, None, None].expand(4, 5, 2)
    return TrainingData(
        latents=latents,
        latent_stds=None if std is None else torch.full_like(latents, std),
        prompts={"encoder_hidden_states": prompts, "text_embeds": prompts[:, 0]},
        prompt_rows=torch.arange(num_rows) % 3,
        sizes={"time_ids": rows[:, None] * 10},
        weights=rows * 100,
    )


def _draw(data: TrainingData, slots: list[int], rows: list[int], step: int = 3, dropout: float = 0.0, seed: int = 7):
    return data.draw(step, slots, torch.tensor(rows), seed, path=PATH, caption_dropout=dropout)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(100, 128), (7, 3), (5, 5), (1, 4)])
def test_batches_are_full_and_rows_drawn_equally_often(num_rows, batch_size):
    counts = torch.zeros(num_rows, dtype=torch.int64)
    for step in range(9):
        rows = shuffled_rows(num_rows, step, batch_size, seed=0)
        assert len(rows) == batch_size
        counts += torch.bincount(rows, minlength=num_rows)
        assert counts.max() - counts.min() <= 1
    assert counts.sum() == 9 * batch_size


def test_each_pass_is_shuffled_anew_and_by_the_seed():
    first, second = shuffled_rows(50, 0, 50, seed=0), shuffled_rows(50, 1, 50, seed=0)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert not torch.equal(first, shuffled_rows(50, 0, 50, seed=1))
    assert torch.equal(first, shuffled_rows(50, 0, 50, seed=0))


def test_a_draw_depends_on_seed_step_and_slot_only():
    whole = _draw(_data(), [0, 1, 2, 3], [5, 4, 3, 2])
    part = _draw(_data(), [2, 3], [3, 2])
    for whole_value, part_value in zip(whole, part, strict=True):
        if isinstance(whole_value, dict):
            assert all(torch.equal(whole_value[name][2:], part_value[name]) for name in whole_value)
        else:
            assert torch.equal(whole_value[2:], part_value)
    noises = [whole.noise[0], whole.noise[1], _draw(_data(), [0], [5], step=4).noise[0]]
    noises.append(_draw(_data(), [0], [5], seed=8).noise[0])
    assert len({noise.sum().item() for noise in noises}) == 4


def test_tensors_belong_to_the_rows():
    draw = _draw(_data(std=None), [0, 1], [5, 1])
    assert draw.latents[:, 0, 0, 0].tolist() == [5.0, 1.0]
    assert draw.weights.tolist() == [500.0, 100.0]
    assert draw.conditioning["encoder_hidden_states"][:, 0, 0].tolist() == [2.0, 1.0]
    assert draw.conditioning["time_ids"][:, 0].tolist() == [50.0, 10.0]


def test_posterior_is_sampled_with_noise_of_its_own():
    slots = list(range(400))
    draw = _draw(_data(std=0.5), slots, [2] * 400)
    posterior_noise = (draw.latents - 2) / 0.5
    assert posterior_noise.mean().abs() < 0.02 and (posterior_noise.std() - 1).abs() < 0.02
    assert (posterior_noise * draw.noise).mean().abs() < 0.02


def test_times_are_uniform_over_the_whole_schedule():
    times = torch.cat([_draw(_data(), list(range(1000)), [0] * 1000, step=s).times for s in range(4)])
    assert times.dtype == torch.int64
    assert times.min() < 10 and times.max() > 989 and times.max() < 1000
    assert abs(times.float().mean() - 499.5) < 20


def test_caption_dropout_replaces_text_but_not_sizes():
    everything = _draw(_data(), [0, 1], [4, 5], dropout=1.0).conditioning
    assert (everything["encoder_hidden_states"] == -1).all() and (everything["text_embeds"] == -1).all()
    assert everything["time_ids"][:, 0].tolist() == [40.0, 50.0]
    some = _draw(_data(), list(range(2000)), [1] * 2000, dropout=0.2).conditioning["text_embeds"][:, 0]
    assert abs((some == -1).float().mean() - 0.2) < 0.03


def test_flips_are_drawn_evenly():
    latents = _draw(_data(flips=2, std=None), list(range(1000)), [3] * 1000).latents[:, 0, 0, 0]
    assert set(latents.tolist()) == {3.0, -4.0}
    assert abs((latents == 3).float().mean() - 0.5) < 0.05


def test_only_prompts_take_the_lower_precision():
    data = _data().to(torch.device("cpu"), torch.bfloat16)
    assert data.prompts["text_embeds"].dtype == torch.bfloat16
    assert data.sizes["time_ids"].dtype == data.latents.dtype == data.weights.dtype == torch.float32


def test_a_noise_offset_shifts_whole_channels_of_the_noise_and_nothing_else():
    common = {"seed": 7, "path": PATH, "caption_dropout": 0.0}
    slots, rows = range(300), torch.arange(300) % 6
    plain, shifted = (_data().draw(3, slots, rows, **common, noise_offset=offset) for offset in (0.0, 0.5))
    offsets = shifted.noise - plain.noise  # (B, C, h, w)
    assert offsets.std(dim=(2, 3)).max() < 1e-5
    assert offsets[:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.1)  # 1200 draws
    assert offsets[:, :, 0, 0].mean().item() == pytest.approx(0.0, abs=0.06)
    assert torch.equal(plain.latents, shifted.latents) and torch.equal(plain.times, shifted.times)
