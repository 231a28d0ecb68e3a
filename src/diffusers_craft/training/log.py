# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a run shows as it goes on: metrics that never stall the device, pictures, and checkpoints on the Hub."""

import logging
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ..core.records import derive_seed
from ..core.run_record import local_paths
from ..errors import UserError
from ..hub.model import LAST_CHECKPOINT, publish_model
from ..hub.upload import HubRepo
from ..objectives.base import Batch, denoising_errors
from ..tiny import MODELS
from .checkpoints import checkpoint_step, list_checkpoints
from .settings import TrainingSettings


logger = logging.getLogger(__name__)


class StepSums:
    """What the micro-batches of all processes add up to in one optimizer step of `batch_size` units."""

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

    def means(self, stop: bool) -> dict[str, torch.Tensor]:
        """The step's scalars, and in how many processes `stop` is true; those of rows that there are not are not finite.

        Begins anew.
        """
        sums = torch.stack([*self._sums.values(), torch.full_like(self._sums["rows"], float(stop))])
        *total, stops = self.accelerator.reduce(sums, reduction="sum").unbind()
        *own, good, num_good, bad, num_bad, num_rows = total
        means = {name: value / self.batch_size for name, value in zip(self._sums, own)}
        self._sums = {}
        means |= {"error_positive": good / num_good, "error_negative": bad / num_bad}
        return means | {"share_negative": num_bad / num_rows, "stop": stops}


class MetricLog:
    """A run's metrics, one dict per step; values are read from the device one step late, so that nothing waits for it.

    A value that is not finite is an error with `advice`; without `check_gradients`, where a loss scaler skips steps, only
    the loss must be finite. `history` are the entries of the steps before a resume.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        history: list[dict],
        check_gradients: bool = True,
        advice: str = "try a lower --learning_rate",
    ) -> None:
        self.accelerator, self.output_dir, self.history, self.advice = accelerator, output_dir, list(history), advice
        self.check_gradients, self.must_stop = check_gradients, False
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
        """Reads what is pending and returns the latest entry; raises a `UserError` for what is not finite."""
        if self._pending is not None:
            step, learning_rate, names, tensor, copied = self._pending
            self._pending = None
            if copied is not None:
                copied.synchronize()
            values = dict(zip(names, tensor.tolist(), strict=True))
            self.must_stop |= values.pop("stop", 0.0) > 0
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


def draw_validation_images(
    pipeline: DiffusionPipeline, accelerator: Accelerator, settings: TrainingSettings, step: int
) -> None:
    """Draws `--validation_prompt` into `validation/step-<step>/` and the trackers; no random state is touched.

    Always from the same noise, so that the pictures show what the weights changed.
    """
    folder = Path(settings.output_dir) / "validation" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": settings.resolution, "width": settings.resolution}
    images = []
    for index in range(settings.num_validation_images):
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, "validation", index))
        options = {"num_inference_steps": 25, "generator": generator}
        images += pipeline(settings.validation_prompt, **size, **options).images
        images[-1].save(folder / f"{index}.png")
    pixels = np.stack([np.asarray(image) for image in images])  # (N, H, W, 3)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": pixels}, step=step, **layout)


class TrainingHub:
    """What `--push_to_hub` asks for, by the main process; without that flag nothing happens here.

    Raises a `UserError` before anything is trained if this account may not write to `--hub_model_id`. `paths` are
    `local_paths` of the run's recorded `options` as it begins, since they may be gone at its end.
    """

    def __init__(self, settings: TrainingSettings, options: Mapping[str, Any], is_main: bool) -> None:
        self.settings, self.is_active = settings, settings.push_to_hub and is_main
        self.private = settings.hub_private_repo or None
        self.repo_id = settings.hub_model_id or Path(settings.output_dir).resolve().name
        self.repo = HubRepo(self.repo_id, "model", self.private)
        self.paths = {text: path for text, path in local_paths(options).items() if text not in MODELS}
        if self.is_active:
            self.repo.open()

    def push_checkpoint(self, folder: Path) -> None:
        """Replaces `last-checkpoint/` on the Hub with `--hub_strategy checkpoint`; a failure does not stop the run."""
        if not self.is_active or self.settings.hub_strategy != "checkpoint":
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        named = {f"{LAST_CHECKPOINT}/{path.relative_to(folder).as_posix()}": path for path in files}
        repo = replace(self.repo, retry="training goes on, and the next checkpoint is sent")
        try:
            repo.upload(folder.parent, named, folder.name, (f"{LAST_CHECKPOINT}/*",))
        except ValueError as error:
            logger.warning("%s was not published: %s", folder.name, error)

    def push_result(self) -> None:
        """Publishes the finished run, all of which is saved if the upload fails."""
        if self.is_active:
            folder, unet_only = self.settings.output_dir, self.settings.push_unet_only
            command = ["python", "publish_craft.py", "--output_dir", folder, "--hub_model_id", self.repo_id]
            command += ["--push_unet_only"] * unet_only + ["--hub_private_repo"] * self.settings.hub_private_repo
            retry = f"to publish it, run `{shlex.join(command)}`"
            publish_model(folder, self.repo_id, unet_only, private=self.private, retry=retry)
