# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Finding checkpoints, and metrics that arrive one step late."""

import pytest
import torch

from diffusers_craft.training.checkpoints import find_checkpoint, list_checkpoints
from diffusers_craft.training.log import MetricLog


class Recorder:
    """Stands in for an accelerator with a tracker."""

    def __init__(self):
        self.logged = {}

    def log(self, values, step):
        self.logged[step] = values


def _checkpoint(folder, step, finished=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if finished:
        (path / "training_state.json").write_text("{}")
    return path


def _metrics(loss: float = 1.0, grad_norm: float = 1.0, error: float = 0.5) -> dict[str, torch.Tensor]:
    values = {"train_loss": loss, "grad_norm": grad_norm, "error_negative": error}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_checkpoints_are_sorted_by_step_and_unfinished_ones_ignored(tmp_path):
    for step in (100, 20, 3):
        _checkpoint(tmp_path, step)
    _checkpoint(tmp_path, 500, finished=False)
    (tmp_path / ".checkpoint-600.tmp").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-100"


def test_a_checkpoint_is_found_by_path_with_a_slash_and_by_name(tmp_path):
    path = _checkpoint(tmp_path, 7)
    assert find_checkpoint(f"{path}/", "elsewhere") == path
    assert find_checkpoint("checkpoint-7", tmp_path) == path


def test_latest_without_checkpoints_starts_anew_but_a_wrong_path_is_an_error(tmp_path):
    assert find_checkpoint("latest", tmp_path) is None
    message = "--resume_from_checkpoint: expected `latest` or the folder of a finished checkpoint, found 'nowhere/'"
    with pytest.raises(ValueError, match=message):
        find_checkpoint("nowhere/", tmp_path)


def test_metrics_are_read_one_step_late_and_none_is_lost(tmp_path):
    recorder = Recorder()
    log = MetricLog(recorder, tmp_path, history=[{"step": 4}])
    assert log.push(5, 1e-3, _metrics(2.0)) == {"step": 4}
    assert log.push(6, 1e-4, _metrics(3.0))["train_loss"] == 2.0
    assert log.flush() == {"step": 6, "lr": 1e-4, "train_loss": 3.0, "grad_norm": 1.0, "error_negative": 0.5}
    assert [entry["step"] for entry in log.history] == [4, 5, 6]
    assert set(recorder.logged) == {5, 6}


def test_a_mean_over_no_rows_is_left_out(tmp_path):
    log = MetricLog(Recorder(), tmp_path, history=[])
    log.push(1, 1e-3, _metrics(error=float("nan")))
    assert "error_negative" not in log.flush()


@pytest.mark.parametrize(
    ("saved", "metrics", "message"),
    [
        ([6], _metrics(float("nan")), "step 8: train_loss is nan; the last good checkpoint is .*checkpoint-6; try"),
        ([6, 7], _metrics(float("nan")), "step 8: train_loss is nan; the last good checkpoint is .*checkpoint-6; try"),
        ([7], _metrics(float("nan")), "step 8: train_loss is nan; there is no good checkpoint; try"),  # its weights
        ([6, 7], _metrics(grad_norm=float("inf")), "step 8: grad_norm is inf; the last good .*checkpoint-7; try"),
    ],
)
def test_the_step_that_diverged_is_named(tmp_path, saved, metrics, message):
    for step in saved:
        _checkpoint(tmp_path, step)
    log = MetricLog(Recorder(), tmp_path, history=[])
    log.push(7, 1e-3, _metrics())
    log.push(8, 1e-3, metrics)
    with pytest.raises(ValueError, match=message):
        log.push(9, 1e-3, _metrics())
    assert [entry["step"] for entry in log.history] == [7]


def test_a_loss_scaler_may_see_infinite_gradients(tmp_path):
    log = MetricLog(Recorder(), tmp_path, history=[], check_gradients=False)
    log.push(1, 1e-3, _metrics(grad_norm=float("inf")))
    assert log.flush()["train_loss"] == 1.0
