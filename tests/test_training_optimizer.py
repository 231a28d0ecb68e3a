# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Optimizers against PyTorch's own, and rounding that neither drifts nor loses small updates."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch

from diffusers_craft import TrainingSettings
from diffusers_craft.training import optimizer as training_optimizer
from diffusers_craft.training.optimizer import StochasticRounding, create_optimizer, round_stochastically


def _settings(**changes) -> TrainingSettings:
    options = {"pretrained_model_name_or_path": "x", "dataset_name": "x", "adam_weight_decay": 0.0} | changes
    return TrainingSettings(**options)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=_generator(100 * seed + index)).to(parameter.dtype)
        optimizer.step()


def _weights(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    shapes = [(64, 80), (80,), (8, 4, 3, 3)]
    return [
        torch.nn.Parameter(torch.randn(shape, generator=_generator(i)).to(dtype)) for i, shape in enumerate(shapes)
    ]


def test_rounding_is_unbiased_and_takes_a_neighbour():
    values = torch.tensor([1.0, 1.0 + 1 / 512, 1.0 + 3 / 512, -3.3, 1e-30, 0.0]).repeat(20000, 1)
    rounded = round_stochastically(values, _generator()).float()
    step = torch.tensor([1 / 128, 1 / 128, 1 / 128, 1 / 64, 1e-32, 0.0])  # between neighbours in bfloat16
    assert (rounded - values).abs().max(dim=0).values.le(step).all()
    assert torch.equal(rounded[:, [0, 5]], values[:, [0, 5]])  # what bfloat16 holds stays
    assert rounded[:, 1].unique().tolist() == [1.0, 1.0078125]
    deviation = step / 2 / values.shape[0] ** 0.5
    assert (rounded.double().mean(dim=0) - values[0].double()).abs().le(5 * deviation + 1e-40).all()
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 3.4e38])
    special_bits = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # a GPU's NaN
    found = round_stochastically(torch.cat([special, special_bits]), _generator())
    assert found[:2].tolist() == [float("inf"), float("-inf")] and found[[2, 4]].isnan().all()


def test_small_updates_survive_only_stochastic_rounding():
    """300 steps of 1e-4 on weights of 1: bfloat16's neighbours lie 1/128 apart, so plain AdamW never moves."""
    moved = {}
    for name in ("plain", "stochastic", "float32"):
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        weight = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
        settings = _settings(train_dtype="bf16" if name == "stochastic" else "fp32")
        optimizer = create_optimizer([weight], settings, 1e-4)
        for _ in range(300):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[name] = (weight.float().mean() - 1).item()
    assert moved["float32"] == pytest.approx(-0.03, rel=1e-3)
    assert moved["plain"] == 0.0
    assert moved["stochastic"] == pytest.approx(moved["float32"], rel=0.02)


@pytest.mark.parametrize("chunk", [10**9, 3000], ids=["whole", "chunks"])
@pytest.mark.parametrize("adafactor", [False, True], ids=["adamw", "adafactor"])
def test_updates_are_those_of_the_inner_optimizer_but_for_rounding(monkeypatch, chunk, adafactor):
    monkeypatch.setattr(training_optimizer, "_CHUNK", chunk)
    settings = _settings(use_adafactor=adafactor, adam_weight_decay=0.1)
    weights, expected = _weights(torch.bfloat16), _weights()
    for weight, value in zip(weights, expected, strict=True):
        value.data = weight.data.float()
    optimizer = StochasticRounding(weights, lambda ps: create_optimizer(ps, settings, 1e-2), seed=0)
    oracle = create_optimizer(expected, settings, 1e-2)
    for seed in range(3):
        _steps(optimizer, weights, range(seed, seed + 1))
        for value, weight in zip(expected, weights, strict=True):
            value.grad = weight.grad.float()
        before = [value.detach().clone() for value in expected]
        oracle.step()
        for value, weight, old in zip(expected, weights, before, strict=True):
            assert (value - old).abs().max() > 1e-3
            torch.testing.assert_close(weight.float(), value, rtol=2**-7, atol=1e-6)
            value.data = weight.data.float()  # the oracle goes on from the rounded weights
    assert all(stand_in.numel() == 0 and stand_in.grad is None for stand_in in optimizer._stand_ins)


def test_the_schedule_reaches_the_inner_optimizer():
    weights = _weights(torch.bfloat16)
    optimizer = create_optimizer(weights, _settings(train_dtype="bf16"), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [weight.detach().clone() for weight in weights]
    _steps(optimizer, weights, range(2))
    assert all(torch.equal(old, weight) for old, weight in zip(before, weights, strict=True))
    assert schedule.get_last_lr() == [0.0]


@pytest.mark.parametrize("flags", [{}, {"use_adafactor": True}], ids=["adamw", "adafactor"])
def test_state_is_restored_exactly(flags):
    settings = _settings(train_dtype="bf16", **flags)
    weights, resumed = _weights(torch.bfloat16), _weights(torch.bfloat16)
    optimizer, other = create_optimizer(weights, settings, 1e-2), create_optimizer(resumed, settings, 1e-2)
    _steps(optimizer, weights, range(3))
    saved = copy.deepcopy(optimizer.state_dict())  # as a file would
    for weight, value in zip(resumed, weights, strict=True):
        weight.data.copy_(value)
    other.load_state_dict(saved)
    _steps(optimizer, weights, range(3, 6))
    _steps(other, resumed, range(3, 6))
    assert all(torch.equal(one, two) for one, two in zip(weights, resumed, strict=True))


def test_adafactor_takes_the_plain_learning_rate_and_keeps_rows_and_columns_only():
    weight = torch.nn.Parameter(torch.zeros(64, 80))
    optimizer = create_optimizer([weight], _settings(use_adafactor=True), 1e-3)
    weight.grad = torch.full_like(weight, 7.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, -1e-3))  # update of unit size, times the rate
    assert sum(value.numel() for value in optimizer.state[weight].values() if torch.is_tensor(value)) == 64 + 80 + 1


def test_8bit_adam_gets_the_flags(monkeypatch):
    calls = []
    stand_in = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=lambda *args, **kwargs: calls.append((args, kwargs))))
    monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
    monkeypatch.setattr(training_optimizer, "find_spec", lambda name: object())
    weights = _weights()
    create_optimizer(weights, _settings(use_8bit_adam=True, adam_beta1=0.8, adam_weight_decay=0.3), 1e-3)
    expected = {"lr": 1e-3, "betas": (0.8, 0.999), "eps": 1e-8, "weight_decay": 0.3}
    assert calls == [((weights,), expected)]


@pytest.mark.parametrize("train_dtype", ["fp32", "bf16"])
def test_8bit_adam_follows_adamw(train_dtype):
    pytest.importorskip("bitsandbytes")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[train_dtype]
    weights, expected = _weights(dtype), _weights()
    for weight, value in zip(weights, expected, strict=True):
        value.data = weight.data.float()
    optimizer = create_optimizer(weights, _settings(use_8bit_adam=True, train_dtype=train_dtype), 1e-2)
    _steps(optimizer, weights, range(5))
    _steps(create_optimizer(expected, _settings(), 1e-2), expected, range(5))
    for weight, value in zip(weights, expected, strict=True):
        error = (weight.float() - value).abs()
        assert error.mean() < 2e-3 + (train_dtype == "bf16") * 6e-3  # five steps of up to 1e-2 each
    state = optimizer.inner.state if train_dtype == "bf16" else optimizer.state
    assert torch.uint8 in {
        value.dtype for entry in state.values() for value in entry.values() if torch.is_tensor(value)
    }


def test_a_missing_bitsandbytes_is_named(monkeypatch):
    monkeypatch.setattr(training_optimizer, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--use_8bit_adam: expected an installed bitsandbytes, .*craft\[8bit\]"):
        create_optimizer(_weights(), _settings(use_8bit_adam=True), 1e-3)
