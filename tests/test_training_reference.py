# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The training scripts against plain computations with diffusers' parts: loss, gradient, order of the rows."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from diffusers import UNet2DConditionModel
from reference_training import error, first_step
from training_driver import losses, same, weights


EXACT_GRADIENT = ["--checkpointing_steps=1", "--adam_beta1=0", "--max_grad_norm=1e9"]  # AdamW's first moment is it


@pytest.fixture
def train_rows(train, tmp_path, make_images):
    """`train_rows(family, advantages, name, *flags)`: a row an advantage, all rows in every batch."""

    def run(family: str, advantages: list[float], name: str, *flags: str) -> Path:
        rows, data = len(advantages), tmp_path / f"{name}-data"
        columns = {"image": make_images(rows), "prompt": [f"thing {row}" for row in range(rows)]}
        (data / "dataset").mkdir(parents=True)
        Dataset.from_dict(columns | {"advantage": advantages}).to_parquet(data / "dataset" / "train-0.parquet")
        fixed = [f"--dataset_name={data}", "--max_train_steps=1"]
        fixed += [f"--train_batch_size={rows}", "--gradient_accumulation_steps=1"]
        return train(family, name, *fixed, *flags)

    return run


@pytest.fixture
def reference(random_sd15, random_sdxl, make_images):
    """`reference(family, rows)`: the base UNet and what the first step shows it."""

    def load(family: str, rows: int):
        model = {"sd15": random_sd15, "sdxl": random_sdxl}[family]
        prompts = [f"thing {row}" for row in range(rows)]
        return _unet(model), list(first_step(model, make_images(rows), prompts))

    return load


def _unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


def _gradient(folder: Path) -> torch.Tensor:
    """All gradients of a run's first step, from the checkpoint that `EXACT_GRADIENT` makes it keep."""
    state = torch.load(folder / "checkpoint-1" / "optimizer.bin", weights_only=True)["state"]
    return torch.cat([state[index]["exp_avg"].flatten() for index in sorted(state)])


def _gradient_of(loss: torch.Tensor, unet: UNet2DConditionModel) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(unet.parameters()))])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_loss_and_gradient_of_a_step_are_the_formula(train_rows, reference, family):
    """Algorithm 1, step 4: the mean over rows of advantage x mean squared error of the noise."""
    advantages = [1.3, -0.7, 0.4]
    unet, examples = reference(family, 3)
    loss = sum(advantages[example.row] * error(unet, example) for example in examples) / 3
    folder = train_rows(family, advantages, "out", *EXACT_GRADIENT)
    assert losses(folder) == pytest.approx([loss.item()], rel=1e-5)
    expected = _gradient_of(loss, unet)
    torch.testing.assert_close(_gradient(folder), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_advantages_of_one_are_fine_tuning_bit_for_bit(train_rows, family):
    """T4: loss, gradient and weights of --loss craft equal those of --loss sft."""
    craft = train_rows(family, [1.0, 1.0], "craft", *EXACT_GRADIENT)
    sft = train_rows(family, [0.3, -2.0], "sft", "--loss=sft", *EXACT_GRADIENT)
    assert losses(craft) == losses(sft) and torch.equal(_gradient(craft), _gradient(sft))
    assert same(weights(craft), weights(sft))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_of_pairs_is_that_of_dpo_at_the_reference(train_rows, reference, family):
    """T5: with A = +1, -1 in each pair, grad L_CRAFT = (2 / beta) grad L_DPO where the policy is the reference.

    Winner and loser have noise of their own here, as DPO's formula allows; the identity does not need it shared.
    """
    beta = 5000.0
    unet, examples = reference(family, 4)
    frozen = copy.deepcopy(unet).requires_grad_(False)
    change = {example.row: error(unet, example) - error(frozen, example) for example in examples}
    dpo = sum(F.softplus(0.5 * beta * (change[row] - change[row + 1])) for row in (0, 2)) / 2
    expected = 2 / beta * _gradient_of(dpo, unet)
    gradient = _gradient(train_rows(family, [1.0, -1.0, 1.0, -1.0], "out", *EXACT_GRADIENT))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_lowers_the_error_of_a_good_row_and_raises_that_of_a_bad_one(train_rows, reference, family, advantage):
    """T7, on the noise that the step has seen."""
    unet, (example,) = reference(family, 1)
    tuned = _unet(train_rows(family, [advantage], "out", "--learning_rate=1e-5"))
    with torch.no_grad():
        change = error(tuned, example).item() - error(unet, example).item()
    assert change * advantage < -1e-6


def test_a_hundred_rows_fill_batches_of_128_and_come_equally_often(train_rows, kept):
    """T10: every batch is full, and every hundred consecutive draws are a permutation of the rows."""
    rows = [float(row + 1) for row in range(100)]
    flags = ["--max_train_steps=3", "--train_batch_size=32", "--gradient_accumulation_steps=4", "--learning_rate=1e-9"]
    train_rows("sd15", rows, "out", *flags)
    seen = [batch.weights.tolist() for step in kept["batches"] for batch in step]
    assert [len(micro_batch) for micro_batch in seen] == [32] * 12
    drawn = [row for micro_batch in seen for row in micro_batch]
    for start in (0, 100, 200):
        assert sorted(drawn[start : start + 100]) == rows
    assert drawn[:100] != drawn[100:200]
