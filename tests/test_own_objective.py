# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Training without a command line: CRAFT as the script trains it, and an objective that this package does not know."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate.state import AcceleratorState
from training_driver import losses, run_json, same, weights

from diffusers_craft import CRAFT, DPO, SFT, LossOutput, Objective, TrainingSettings, craft_loss, train


STEPS = {"train_batch_size": 4, "gradient_accumulation_steps": 1, "max_train_steps": 3}


@dataclass
class CRAFTWithReference(Objective):
    """CRAFT, held near the base: A ||eps - eps_theta||^2 + beta ||eps_theta - eps_ref||^2, which bounds the KL divergence.

    Args:
        beta (`float`, *optional*, defaults to 1): weight of the distance.
    """

    beta: float = 1.0
    uses_reference: ClassVar[bool] = True
    uses_timestep_weights: ClassVar[bool] = True

    def loss(self, batch, prediction, reference):
        distance = (prediction.float() - reference.float()).square().flatten(1).mean(1)
        loss = craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights)
        return LossOutput(loss + self.beta * distance.mean(), {"distance": distance.mean()})


@pytest.fixture
def fit(random_sd15, random_sdxl, dataset_folder, tmp_path):
    """`fit(objective, "name", ...)`: what a notebook does; returns the output folder."""

    def run(objective: Objective, output: str, family: str = "sd15", **changes) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"dataset_name": str(dataset_folder), "output_dir": str(tmp_path / output), "backbone": family}
        options |= {"resolution": 64, "report_to": "none", "learning_rate": 1e-3} | STEPS | changes
        model = {"sd15": random_sd15, "sdxl": random_sdxl}[family]
        train(TrainingSettings(pretrained_model_name_or_path=str(model), **options), objective)
        return tmp_path / output

    return run


@pytest.mark.parametrize(
    ("family", "objective", "flags", "changes"),
    [
        ("sd15", CRAFT(), [], {}),
        ("sdxl", CRAFT(advantage_clip_min=0.0), ["--advantage_clip_min=0", "--snr_gamma=5"], {"snr_gamma": 5.0}),
        ("sd15", SFT(), ["--loss=sft", "--caption_dropout=0.3"], {"caption_dropout": 0.3}),
    ],
)
def test_a_notebook_trains_what_the_script_does(train, fit, family, objective, flags, changes):
    """Bit for bit, and the record says the same."""
    script = train(family, "script", *(f"--{name}={value}" for name, value in STEPS.items()), *flags)
    notebook = fit(objective, "notebook", family, **changes)
    assert same(weights(script), weights(notebook)) and losses(script) == losses(notebook)
    records = [run_json(folder) for folder in (script, notebook)]
    options = [record["options"] | {"output_dir": ""} for record in records]
    assert options[0] == {name: value for name, value in options[1].items() if name in options[0]}
    assert records[0].keys() == records[1].keys()


def test_an_objective_of_ones_own_sees_advantages_reference_and_timestep_weights(fit, caplog):
    """Without its distance it is CRAFT; with it, the model stays nearer to the base."""
    craft = fit(CRAFT(), "craft", snr_gamma=0.5)
    free = fit(CRAFTWithReference(beta=0.0), "free", snr_gamma=0.5)
    assert same(weights(craft), weights(free)) and losses(craft) == losses(free)
    assert losses(craft) != losses(fit(CRAFT(), "alike"))
    held = run_json(fit(CRAFTWithReference(beta=100.0), "held", snr_gamma=0.5))
    distances = [[entry["distance"] for entry in run["loss_history"]] for run in (run_json(free), held)]
    assert distances[0][0] == distances[1][0] == 0.0 and 0 < distances[1][2] < distances[0][2]
    assert (held["options"]["objective"], held["options"]["beta"]) == ("CRAFTWithReference", 100.0)
    assert held["speed"]["mfu"] is None

    caplog.set_level(logging.WARNING, logger="diffusers_craft")
    on = {"checkpointing_steps": 2, "resume_from_checkpoint": "latest", "max_train_steps": 4}
    fit(CRAFTWithReference(beta=1.0), "on", checkpointing_steps=2)
    fit(CRAFTWithReference(beta=2.0), "on", **on)
    assert "--beta of the checkpoint is 1.0, now 2.0: not the same run." in caplog.text


def test_what_an_objective_does_not_heed_is_refused(fit):
    with pytest.raises(ValueError, match="--snr_gamma: expected none with DPO, which has no use for it, found 5.0"):
        fit(DPO(), "out", snr_gamma=5.0)
    with pytest.raises(ValueError, match="--num_pairs: expected none with CRAFT, which has no use for it, found 3"):
        fit(CRAFT(), "out", num_pairs=3)


def test_an_objective_may_be_no_dataclass(fit):
    class Plain(Objective):
        def loss(self, batch, prediction, reference):
            return LossOutput(torch.nn.functional.mse_loss(prediction.float(), batch.target))

    assert run_json(fit(Plain(), "plain"))["options"]["objective"] == "Plain"
