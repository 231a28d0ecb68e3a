# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Metrics that never stall the device."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator

from ..errors import UserError
from ..objectives.base import Batch, denoising_errors
from .checkpoints import checkpoint_step, list_checkpoints


class StepSums:
    """What the micro-batches of all processes add up to in one optimizer step.

    Args:
        accelerator (`Accelerator`): adds over the processes.
        batch_size (`int`): units of a global batch.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, means: Mapping[str, torch.Tensor], prediction: torch.Tensor, batch: Batch, units: int) -> None:
        """Adds a micro-batch: scalar means over its units, and the errors of its rows by the sign of their weight."""
        errors = denoising_errors(prediction.detach(), batch.target)
        good, bad = (batch.weights > 0).float(), (batch.weights < 0).float()
        sums = {name: value.detach().float() * units for name, value in means.items()}
        sums |= {"good errors": good @ errors, "good rows": good.sum(), "bad errors": bad @ errors}
        sums |= {"bad rows": bad.sum(), "rows": torch.full_like(bad.sum(), len(errors))}
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in sums.items()}

    def means(self) -> dict[str, torch.Tensor]:
        """The step's scalars; those of rows that there are not are not finite. Begins anew."""
        total = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum")
        *own, good, num_good, bad, num_bad, num_rows = total.unbind()
        means = {name: value / self.batch_size for name, value in zip(self._sums, own)}
        self._sums = {}
        return means | {
            "error_positive": good / num_good,
            "error_negative": bad / num_bad,
            "share_negative": num_bad / num_rows,
        }


class MetricLog:
    """A run's metrics, one dict per step; values are read from the device one step late, so that nothing waits for it.

    Args:
        accelerator (`Accelerator`): its trackers receive every entry.
        output_dir (`str` or `Path`): the run's folder, whose last checkpoint an error names.
        history (`list[dict]`): entries of the steps before a resume.
        check_gradients (`bool`): whether a gradient norm that is not finite is an error (a loss scaler skips those).
        advice (`str`): what an error tells the user to try.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        history: list[dict],
        check_gradients: bool = True,
        advice: str = "try a lower --learning_rate",
    ) -> None:
        self.accelerator, self.output_dir, self.advice = accelerator, output_dir, advice
        self.history = list(history)
        self.check_gradients = check_gradients
        self._pending: tuple[int, float, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def push(self, step: int, learning_rate: float, metrics: dict[str, torch.Tensor]) -> dict:
        """Takes scalar tensors of a step (from 1) and returns the entry of the step before (empty at first)."""
        entry = self.flush()
        values, copied = torch.stack([value.float() for value in metrics.values()]), None
        if values.is_cuda:  # reading it later must not wait for the steps that are queued by then
            values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self._pending = (step, learning_rate, list(metrics), values, copied)
        return entry

    def flush(self) -> dict:
        """Reads what is pending and returns the latest entry.

        Raises:
            UserError: if the loss or the gradient is not finite.
        """
        if self._pending is not None:
            step, learning_rate, names, tensor, copied = self._pending
            self._pending = None
            if copied is not None:
                copied.synchronize()
            values = dict(zip(names, tensor.tolist(), strict=True))
            checked = ("train_loss", "grad_norm") if self.check_gradients else ("train_loss",)
            wrong = [f"{name} is {values[name]}" for name in checked if not math.isfinite(values[name])]
            if wrong:
                # The loss of a step is that of the weights before it: a checkpoint of those is as bad.
                end = step - 1 if math.isfinite(values["train_loss"]) else step - 2
                good = [path for path in list_checkpoints(self.output_dir) if checkpoint_step(path) <= end]
                kept = f"the last good checkpoint is {good[-1]}" if good else "there is no good checkpoint"
                raise UserError(f"step {step}: {' and '.join(wrong)}; {kept}; {self.advice}")
            finite = {name: value for name, value in values.items() if math.isfinite(value)}  # no rows of that sign
            self.accelerator.log(finite | {"lr": learning_rate}, step=step)
            self.history.append({"step": step, "lr": learning_rate} | finite)
        return self.history[-1] if self.history else {}
