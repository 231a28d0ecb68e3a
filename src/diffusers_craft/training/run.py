# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The parts of a training run around its loop.

The loop, and with it the loss, is `loop.train`; CRAFT's scripts (examples/craft) write theirs out.
"""

import dataclasses
import logging
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from tqdm.auto import tqdm

from ..core.files import remove_leftovers, remove_unfinished_weights
from ..core.output import FolderLock, full_disk_named, require_space
from ..core.records import derive_seed
from ..core.run_record import write_run_json
from ..core.workdir import RUN_FILE
from ..data.rows import PairData, TrainingData, shuffled_rows
from ..errors import UserError
from ..hub.upload import forget_published
from ..models.family import Components, Family
from ..models.noise import diffuse
from ..objectives.base import Batch, Objective
from .checkpoints import Checkpoints, list_checkpoints, recipe, resume
from .log import MetricLog, StepSums, TrainingHub, draw_validation_images
from .model import TrainedModel
from .settings import TrainingSettings
from .speed import SpeedMeter, announce_speed, forward_flops, speed_report
from .termination import Termination


logger = logging.getLogger(__name__)

_CAPTIONS_SHOWN = 4  # on a card


class TrainingRun:
    """Fine-tuning of a denoiser: optimizer, schedule, EMA, checkpoints, metrics, validation and the final pipeline.

    Args:
        settings (`TrainingSettings`): what to do.
        accelerator (`Accelerator`): from `create_accelerator`.
        family (`Family`): family of the model.
        components (`Components`): the denoiser to train; VAE and text encoders are dropped.
        data (`TrainingData` or `PairData`): encoded rows.
        objective (`Objective`): what the loop optimises, for the record and for advice.
        record (`Mapping`, *optional*): further options to record.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        accelerator: Accelerator,
        family: Family,
        components: Components,
        data: TrainingData | PairData,
        objective: Objective,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        settings = settings.for_model(family, components)
        self.settings, self.accelerator, self.family, self.objective = settings, accelerator, family, objective
        self._lock = FolderLock(Path(settings.output_dir)) if accelerator.is_main_process else None
        self._other_bytes = 0 if settings.use_lora else components.encoder_bytes  # of a whole pipeline
        components.free_encoders()
        self.path = components.path.to(accelerator.device)
        self.batch_size = settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
        self.max_train_steps = settings.max_train_steps or family.max_train_steps
        if settings.max_train_steps is None and settings.num_train_epochs is not None:
            self.max_train_steps = math.ceil(settings.num_train_epochs * len(data) / self.batch_size)
        learning_rate = settings.learning_rate * (self.batch_size if settings.scale_lr else 1)
        schedule = (learning_rate, self.max_train_steps)
        self.model = TrainedModel(components.denoiser, settings, family, accelerator, *schedule)
        self.data = data.to(accelerator.device, self.model.dtype)
        self.options = _recorded(settings, objective) | dict(record or {})
        self.options |= {"max_train_steps": self.max_train_steps, "mixed_precision": accelerator.mixed_precision}
        self.hub = TrainingHub(settings, self.options, accelerator.is_main_process)
        earlier = resume(self.model, objective, self._identity(), self.max_train_steps)
        self.step = self._first_step = earlier.get("step", 0)
        self._weight_bytes, checkpoint = self.model.sizes()
        self.checkpoints = Checkpoints(accelerator, settings, checkpoint)
        if accelerator.is_main_process:
            remove_unfinished_weights(settings.output_dir)
            remove_leftovers(Path(settings.output_dir))
            result = self._weight_bytes + self._other_bytes
            needed = self.checkpoints.space(self.step, self.max_train_steps, result)
            purpose = "the result and as many checkpoints as --checkpointing_steps and --checkpoints_total_limit keep"
            require_space(Path(settings.output_dir), needed, purpose)
        if 0 < self.max_train_steps <= settings.lr_warmup_steps:
            words = "--lr_warmup_steps %d: the rate is never reached in %d optimizer steps"
            logger.warning(words, settings.lr_warmup_steps, self.max_train_steps)
        remedy = objective.remedy if (self.data.weights < 0).any() else ""
        advice = "try a lower --learning_rate" + (f" or {remedy}" if remedy else "")
        check_gradients = accelerator.mixed_precision != "fp16"
        history = earlier.get("history", [])
        self.log = MetricLog(accelerator, settings.output_dir, history, check_gradients, advice)
        self._sums = StepSums(accelerator, self.batch_size)
        if accelerator.log_with:
            config = {name: value for name, value in self.options.items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("diffusers-craft", config=config)
        self._announce()
        hidden = not accelerator.is_local_main_process
        self.progress = tqdm(total=self.max_train_steps, initial=self.step, desc="Steps", disable=hidden)
        self.meter = SpeedMeter(accelerator.device, accelerator.num_processes, earlier.get("cost"))
        self._termination, self._at_end = Termination(), ExitStack()
        self._termination.listen()
        self._at_end.callback(self._termination.release)
        self._at_end.callback(self.progress.close)  # an error then has a line of its own

    @property
    def denoiser(self) -> torch.nn.Module:
        """The trained model, as accelerate has wrapped it."""
        return self.model.denoiser

    def steps(self) -> Iterator[int]:
        """The optimizer steps that are left, counted from 0."""
        try:
            yield from range(self.step, self.max_train_steps)
        except GeneratorExit:  # an error or a break ended the loop
            self._at_end.close()
            raise

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This process's share of a global batch; gradients are exchanged after the last piece only."""
        settings, size = self.settings, self.settings.train_batch_size
        rows = shuffled_rows(len(self.data), step, self.batch_size, settings.seed)
        options = {"seed": settings.seed, "path": self.path}
        options |= {"caption_dropout": settings.caption_dropout, "noise_offset": settings.noise_offset}
        for micro_step in range(settings.gradient_accumulation_steps):
            start = (micro_step * self.accelerator.num_processes + self.accelerator.process_index) * size
            draw = self.data.draw(step, range(start, start + size), rows[start : start + size], **options)
            batch = diffuse(draw, self.path, settings.snr_gamma)
            if settings.use_lora and settings.lora_dropout:  # the only randomness that torch draws by itself
                torch.manual_seed(derive_seed(settings.seed, "dropout", step, start))
            with self.accelerator.accumulate(self.denoiser):
                yield batch

    def backward(
        self,
        loss: torch.Tensor,
        prediction: torch.Tensor,
        batch: Batch,
        metrics: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds the gradient of a micro-batch; `loss` is a mean over its units, the step's loss one over all units.

        Args:
            loss (`torch.Tensor`): scalar.
            prediction (`torch.Tensor`): (B, C, h, w) what the model said.
            batch (`Batch`): B rows.
            metrics (`Mapping[str, torch.Tensor]`, *optional*): scalars to average over the step and log.
        """
        self.accelerator.backward(loss)  # divides by the number of micro-batches
        self._sums.add({**(metrics or {}), "train_loss": loss}, prediction, batch, self.settings.train_batch_size)

    def finish_step(self) -> None:
        """Clips, steps, averages, logs; checkpoints and draws validation images where they are due."""
        grad_norm, learning_rate = self.model.update()
        self.step += 1
        entry = self.log.push(
            self.step, learning_rate, self._sums.means(self._termination.came) | {"grad_norm": grad_norm}
        )
        self.progress.update()
        if entry:
            self.progress.set_postfix(step_loss=entry["train_loss"], lr=learning_rate, refresh=False)
            self.checkpoints.drop_old(entry["step"])
        self.meter.step_done()
        if self.step % self.checkpoints.period == 0 and not (self.checkpoints.passing and self._is_last()):
            with self.meter.pause():
                self.hub.push_checkpoint(self._save_checkpoint())
        if self.log.must_stop or (self._termination.came and self.accelerator.num_processes == 1):
            self._stop()
        if self._validation_is_due():
            with self.meter.pause():
                self.validate()

    def _stop(self) -> None:
        """Leaves a checkpoint of this step, and the exit code of a process that SIGTERM ended.

        A single process stops after the step in which it came, several together after the next one.
        """
        self.log.flush()
        if self.checkpoints.newest != self.step:
            self._save_checkpoint()
        logger.warning("SIGTERM: stopped after step %d; --resume_from_checkpoint latest goes on from there", self.step)
        raise SystemExit(128 + signal.SIGTERM)

    def validate(self) -> None:
        """Draws `--validation_prompt`, always from the same noise; weights and random state stay as they are."""
        with self.model.result() as denoiser:
            if denoiser is not None:
                self._draw(denoiser)

    def _draw(self, denoiser: ModelMixin, pipeline: DiffusionPipeline | None = None) -> None:
        """Draws the validation images; without the base or space for them the run goes on."""
        try:
            pipeline = pipeline or self._pipeline(denoiser)
            draw_validation_images(pipeline, self.accelerator, self.settings, self.step)
        except (UserError, OSError) as error:
            logger.warning("Validation images of step %d were not drawn: %s", self.step, error)

    def finish(self) -> None:
        """Saves the result, and `craft_run.json` with options, versions, losses and speed.

        What was trained comes first: the base's other parts are loaded again, and may be gone.
        """
        with self._at_end:
            self._finish()
        self.hub.push_result()

    def _finish(self) -> None:
        self.log.flush()
        self.checkpoints.drop_old(self.step + 1)
        self.progress.close()
        speed = self._speed()
        self.accelerator.wait_for_everyone()
        output_dir = self.settings.output_dir
        with self.model.result(keep_autocast=self.model.weights.need_autocast) as denoiser:
            if denoiser is not None:
                if self.step > self._first_step:
                    forget_published(output_dir)  # other weights than these
                with full_disk_named(Path(output_dir), self._weight_bytes, "the result"):
                    self.model.weights.save(denoiser, output_dir)
                self._save_rest(denoiser)
                write_run_json(Path(output_dir) / RUN_FILE, self.options, paths=self.hub.paths, **self._results(speed))
                logger.info("Saved the result in %s", output_dir)
        self.accelerator.wait_for_everyone()
        self.checkpoints.end()
        self.accelerator.end_training()
        if self._lock is not None:
            self._lock.release()

    def _save_rest(self, denoiser: ModelMixin) -> None:
        """The base's other parts, and the last validation images."""
        folder, component, pipeline = Path(self.settings.output_dir), self.family.component, None
        if not self.settings.use_lora:
            try:
                pipeline = self._pipeline(denoiser)
            except UserError as error:
                safe = f"the trained {component} is safe in {folder / component}, which evaluate_craft.py takes"
                if list_checkpoints(folder):
                    safe += "; with the base in place again, --resume_from_checkpoint latest writes the rest"
                raise UserError(f"{error} ({safe})") from error
            with full_disk_named(folder, self._other_bytes, "the base's other parts"):
                self.model.weights.save_rest(pipeline, folder)
        if self.settings.validation_prompt is not None:
            self._draw(denoiser, pipeline)

    def _is_last(self) -> bool:
        return self.step == self.max_train_steps

    def _identity(self) -> dict[str, int]:
        """What has to stay the same for a resumed run to equal an undisturbed one, besides the `recipe`."""
        return {"seed": self.settings.seed, "num_rows": len(self.data), "global_batch_size": self.batch_size}

    def _results(self, speed: Mapping[str, float | None]) -> dict[str, Any]:
        """What the record says beside the options; the last three are for the card."""
        device = self.accelerator.device
        results = {key: value for key, value in self._identity().items() if key != "seed"}
        results |= {"num_processes": self.accelerator.num_processes, "speed": speed, "loss_history": self.log.history}
        captions = [caption for caption in self.data.images.captions if caption][:_CAPTIONS_SHOWN]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        return results | {"family": self.family.name, "captions": captions, "device": name}

    def _save_checkpoint(self) -> Path:
        entry = self.log.flush()  # nothing that is not finite gets saved
        self.checkpoints.drop_old(entry["step"])
        state = self._identity() | {"history": self.log.history, "cost": self.meter.state()}
        state |= {"recipe": recipe(self.settings, self.objective)}
        return self.checkpoints.save(self.step, state)

    def _speed(self) -> dict[str, float | None]:
        """Measures, and tells the user."""
        data, accelerator = self.data.images, self.accelerator
        conditioning = {name: value[:1] for name, value in (data.prompts | data.sizes).items()}
        flops = forward_flops(self.family, accelerator.unwrap_model(self.denoiser), data.latents[0, :1], conditioning)
        precision, frozen = accelerator.mixed_precision, self.settings.use_lora
        speed = speed_report(self.meter, self.batch_size, flops, precision, frozen)
        if not self.objective.is_one_pass:  # references, pairs and roll-outs are not in the count
            speed["mfu"] = None
        hours, steps = self.objective.paper_hours.get(self.family.name), self.family.max_train_steps
        announce_speed(speed, "" if hours is None else f"the paper's {steps} steps: {hours} on H100")
        return speed

    def _validation_is_due(self) -> bool:
        if self.settings.validation_prompt is None or self.step == self.max_train_steps:
            return False  # the last one is drawn when the pipeline is saved
        period = self.settings.validation_epochs * len(self.data)
        return self.step * self.batch_size // period > (self.step - 1) * self.batch_size // period

    def _pipeline(self, denoiser: ModelMixin) -> DiffusionPipeline:
        pipeline = self.family.pipeline(self.settings.source, denoiser=denoiser, device=self.accelerator.device)
        if (kind := self.settings.prediction_type) is not None:
            scheduler = pipeline.scheduler
            pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
        return pipeline

    def _announce(self) -> None:
        negative = int((self.data.weights < 0).sum())
        logger.info("***** Running training *****")
        logger.info("  Rows = %d, of which %d with a negative advantage", len(self.data), negative)
        size = self.settings.train_batch_size
        logger.info("  Batch = %d per process and pass, %d in total", size, self.batch_size)
        epochs = self.max_train_steps * self.batch_size / len(self.data)
        logger.info("  Optimizer steps = %d (%.1f passes over the data)", self.max_train_steps, epochs)


def _recorded(settings: TrainingSettings, objective: Objective) -> dict[str, Any]:
    """The settings and the objective's options, without what chooses pairs where there are none."""
    pairs = objective.unit in ("pair", "label")
    fields = [f for f in dataclasses.fields(settings) if pairs or f.metadata.get("group") != "preferences"]
    return {field.name: getattr(settings, field.name) for field in fields} | objective.record()
