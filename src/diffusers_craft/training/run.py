# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The parts of a training run around its loop; the loop itself, and with it the loss, stands in the script.

run = TrainingRun(args, accelerator, backbone, source, components, data)
for step in run.steps():
    for batch in run.micro_batches(step):
        prediction = backbone.predict(run.unet, batch.noisy_latents, batch.timesteps, batch.conditioning)
        loss = craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights)
        run.backward(loss, prediction, batch)
    run.finish_step()
run.finish()
"""

import logging
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..core.records import derive_seed
from ..core.run_record import write_run_json
from ..core.workdir import RUN_FILE
from ..data.rows import TrainingData, shuffled_rows
from ..hub.upload import forget_published
from ..models.families import Backbone, Components, ModelSource
from ..models.noise import diffuse
from ..objectives.base import Batch, denoising_errors
from .checkpoints import drop_old_checkpoints, keep_unet_in_checkpoints, save_checkpoint
from .log import MetricLog
from .optimizer import create_optimizer
from .publishing import TrainingHub, card_facts
from .resume import recipe, resume
from .speed import SpeedMeter, announce_speed, forward_flops, speed_report
from .validation import draw_validation_images
from .weights import compile_blocks, trained_weights, whole_unet


logger = logging.getLogger(__name__)


class TrainingRun:
    """Fine-tuning of a UNet: optimizer, schedule, EMA, checkpoints, metrics, validation and the final pipeline.

    Args:
        args (`argparse.Namespace`): flags of `add_training_arguments`.
        accelerator (`Accelerator`): from `create_accelerator`.
        backbone (`Backbone`): family of the UNet.
        source (`ModelSource`): where the base pipeline comes from.
        components (`Components`): the UNet to train; VAE and text encoders are dropped.
        data (`TrainingData`): encoded rows.
    """

    def __init__(
        self,
        args: Namespace,
        accelerator: Accelerator,
        backbone: Backbone,
        source: ModelSource,
        components: Components,
        data: TrainingData,
    ) -> None:
        self.args, self.accelerator, self.backbone, self.source = args, accelerator, backbone, source
        components.free_encoders()
        self.path = components.path.to(accelerator.device)
        precisions = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = precisions.get(accelerator.mixed_precision, torch.float32)
        self.weights = trained_weights(args, backbone.pipeline_class)
        self.data = data.to(accelerator.device, self.dtype)
        self.batch_size = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self.max_train_steps = _train_steps(args, len(data), self.batch_size, backbone.max_train_steps)
        self._prepare_model(components.unet)
        keep_unet_in_checkpoints(accelerator, self.ema, self.weights)
        self.hub = TrainingHub(args, accelerator.is_main_process)
        earlier = resume(args, accelerator, self.optimizer, self.lr_scheduler, self._identity(), self.max_train_steps)
        self.step, self._saved_step = earlier.get("step", 0), None
        self._resumed_step = self.step
        history, scaled = earlier.get("history", []), accelerator.mixed_precision == "fp16"
        self.log = MetricLog(accelerator, args.output_dir, history, check_gradients=not scaled, advice=self._advice())
        self._sums = torch.zeros(6, device=accelerator.device)
        self._means: dict[str, torch.Tensor] = {}
        if accelerator.log_with:
            config = {name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("diffusers-craft", config=config)
        self._announce()
        self.progress = tqdm(
            total=self.max_train_steps,
            initial=self.step,
            desc="Steps",
            disable=not accelerator.is_local_main_process,
        )
        self.meter = SpeedMeter(accelerator.device, accelerator.num_processes, earlier.get("cost"))

    def steps(self) -> Iterator[int]:
        """The optimizer steps that are left, counted from 0."""
        yield from range(self.step, self.max_train_steps)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This process's share of a global batch; gradients are exchanged after the last piece only."""
        args, size = self.args, self.args.train_batch_size
        rows = shuffled_rows(len(self.data), step, self.batch_size, args.seed)
        for micro_step in range(args.gradient_accumulation_steps):
            start = (micro_step * self.accelerator.num_processes + self.accelerator.process_index) * size
            slots = range(start, start + size)
            draw = self.data.draw(
                step,
                slots,
                rows[slots.start : slots.stop],
                args.seed,
                self.path,
                caption_dropout=args.caption_dropout,
                noise_offset=args.noise_offset,
            )
            batch = diffuse(draw, self.path, args.snr_gamma)
            if args.use_lora and args.lora_dropout:  # the only randomness that torch draws by itself
                torch.manual_seed(derive_seed(args.seed, "dropout", step, start))
            with self.accelerator.accumulate(self.unet):
                yield batch

    def backward(
        self,
        loss: torch.Tensor,
        prediction: torch.Tensor,
        batch: Batch,
        metrics: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds the gradient of a micro-batch; `loss` is a mean over its units, the step's loss one over all units.

        Args:
            loss (`torch.Tensor`): scalar.
            prediction (`torch.Tensor`): (B, C, h, w) what the UNet said.
            batch (`Batch`): B rows.
            metrics (`dict[str, torch.Tensor]`, *optional*): scalars to average over the step and log.
        """
        self.accelerator.backward(loss)  # divides by the number of micro-batches
        errors = denoising_errors(prediction.detach(), batch.target)
        good, bad = (batch.weights > 0).float(), (batch.weights < 0).float()
        parts = [
            loss.detach().float() * self.args.train_batch_size,
            good @ errors,
            good.sum(),
            bad @ errors,
            bad.sum(),
            torch.full((), len(errors), device=errors.device, dtype=errors.dtype),
        ]
        self._sums += torch.stack(parts)
        for name, value in (metrics or {}).items():
            self._means[name] = self._means.get(name, 0.0) + value.detach().float() * self.args.train_batch_size

    def finish_step(self) -> None:
        """Clips, steps, averages, logs; checkpoints and draws validation images where they are due."""
        grad_norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.args.max_grad_norm)
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.unet.parameters())
        self.step += 1
        entry = self.log.push(self.step, learning_rate, self._metrics(grad_norm))
        self.progress.update()
        if entry:
            self.progress.set_postfix(step_loss=entry["train_loss"], lr=learning_rate, refresh=False)
            self._drop_old_checkpoints(entry["step"])
        self.meter.step_done()
        if self.step % self.args.checkpointing_steps == 0:
            with self.meter.pause():
                self._save_checkpoint()
        if self._validation_is_due():
            with self.meter.pause():
                self.validate()

    def validate(self) -> None:
        """Draws `--validation_prompt`, always from the same noise; weights and random state stay as they are."""
        unet = whole_unet(self.accelerator, self.unet)
        if not self.accelerator.is_main_process:
            return
        unet.eval()
        if self.ema is not None:
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        pipeline = self._pipeline(unet, self.accelerator.device)
        draw_validation_images(pipeline, self.accelerator, self.args, self.step)
        if self.ema is not None:
            self.ema.restore(unet.parameters())
        unet.train()

    def finish(self) -> None:
        """Saves the pipeline or the LoRA weights, and `craft_run.json` with options, versions, losses and speed."""
        self.log.flush()
        self._drop_old_checkpoints(self.step + 1)
        self.progress.close()
        speed = self._speed()
        self.accelerator.wait_for_everyone()
        unet = whole_unet(self.accelerator, self.unet, keep_autocast=self.weights.need_autocast)
        if self.accelerator.is_main_process:
            unet.eval()
            if self.ema is not None:
                self.ema.copy_to(unet.parameters())
            pipeline = self._pipeline(unet, self.accelerator.device)
            if self.step > self._resumed_step:
                forget_published(self.args.output_dir)  # other weights than these
            self.weights.save_result(pipeline, self.args.output_dir)
            if self.args.validation_prompt is not None:
                draw_validation_images(pipeline, self.accelerator, self.args, self.step)
            options = vars(self.args) | {"max_train_steps": self.max_train_steps}
            options |= {"mixed_precision": self.accelerator.mixed_precision}
            results = {key: value for key, value in self._identity().items() if key != "seed"}
            results |= {"num_processes": self.accelerator.num_processes, "speed": speed}
            results |= {"loss_history": self.log.history}
            results |= card_facts(self.backbone, self.data, self.accelerator.device)
            write_run_json(Path(self.args.output_dir) / RUN_FILE, options, paths=self.hub.paths, **results)
            logger.info("Saved the result in %s", self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.hub.push_result()

    def _prepare_model(self, unet: UNet2DConditionModel) -> None:
        args = self.args
        self.weights.prepare(unet, self.dtype)
        layout = torch.channels_last if args.channels_last else torch.preserve_format
        unet.to(self.accelerator.device, memory_format=layout).train()
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if args.torch_compile:
            compile_blocks(unet)
        scale = self.batch_size if args.scale_lr else 1
        optimizer = create_optimizer(unet.parameters(), args, args.learning_rate * scale)
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_train_steps,
        )
        self.ema: EMAModel | None = None
        if args.use_ema:
            self.ema = EMAModel(
                unet.parameters(), foreach=True, model_cls=UNet2DConditionModel, model_config=unet.config
            )
            self.ema.to(self.accelerator.device)
        self.unet, self.optimizer, self.lr_scheduler = self.accelerator.prepare(unet, optimizer, lr_scheduler)

    def _identity(self) -> dict[str, int]:
        """What has to stay the same for a resumed run to equal an undisturbed one, besides the `recipe`."""
        return {"seed": self.args.seed, "num_rows": len(self.data), "global_batch_size": self.batch_size}

    def _save_checkpoint(self) -> None:
        entry = self.log.flush()  # nothing that is not finite gets saved
        self._drop_old_checkpoints(entry["step"])
        state = self._identity() | {"history": self.log.history}
        state |= {"recipe": recipe(self.args), "cost": self.meter.state()}
        path = save_checkpoint(self.accelerator, self.args.output_dir, self.step, state)
        self._saved_step = self.step
        self.hub.push_checkpoint(path)

    def _drop_old_checkpoints(self, finite_step: int) -> None:
        """Rotation, once the loss after the newest checkpoint is known to be finite: until then the one before it stays."""
        if self._saved_step is None or finite_step <= self._saved_step:
            return
        self._saved_step = None
        if self.accelerator.is_main_process:
            drop_old_checkpoints(self.args.output_dir, self.args.checkpoints_total_limit)

    def _speed(self) -> dict[str, float | None]:
        """Measures, and tells the user."""
        data, accelerator = self.data.images, self.accelerator
        conditioning = {name: value[:1] for name, value in (data.prompts | data.sizes).items()}
        config = accelerator.unwrap_model(self.unet).config
        flops = forward_flops(self.backbone, config, data.latents[0, :1], conditioning)
        speed = speed_report(
            self.meter, self.batch_size, flops, accelerator.mixed_precision, frozen=self.args.use_lora
        )
        is_recipe = not hasattr(self.args, "objective")
        if not is_recipe:  # references, pairs and roll-outs are not in the count
            speed["mfu"] = None
        announce_speed(speed, self.backbone if is_recipe else None)
        return speed

    def _metrics(self, grad_norm: torch.Tensor) -> dict[str, torch.Tensor]:
        loss, good, num_good, bad, num_bad, num_rows = self.accelerator.reduce(self._sums, reduction="sum").unbind()
        self._sums = torch.zeros_like(self._sums)
        own, self._means = self._means, {}
        if own:
            means = self.accelerator.reduce(torch.stack(list(own.values())), reduction="sum") / self.batch_size
            own = dict(zip(own, means.unbind()))
        if hasattr(grad_norm, "full_tensor"):  # shared between the processes, under FSDP
            grad_norm = grad_norm.full_tensor()
        return own | {
            "train_loss": loss / self.batch_size,
            "error_positive": good / num_good,  # not finite, and left out, where there is no such row
            "error_negative": bad / num_bad,
            "share_negative": num_bad / num_rows,
            "grad_norm": torch.as_tensor(grad_norm, device=loss.device),
        }

    def _validation_is_due(self) -> bool:
        if self.args.validation_prompt is None or self.step == self.max_train_steps:
            return False  # the last one is drawn when the pipeline is saved
        period = self.args.validation_epochs * len(self.data)
        return self.step * self.batch_size // period > (self.step - 1) * self.batch_size // period

    def _pipeline(self, unet: UNet2DConditionModel, device: torch.device) -> DiffusionPipeline:
        pipeline = self.backbone.pipeline(self.source, unet=unet, device=device)
        if self.args.prediction_type is not None:
            config = pipeline.scheduler.config
            pipeline.scheduler = type(pipeline.scheduler).from_config(
                config, prediction_type=self.args.prediction_type
            )
        return pipeline

    def _advice(self) -> str:
        """What to try after a loss that is not finite."""
        unlearns = self.args.loss == "craft" and bool((self.data.weights < 0).any())
        return "try a lower --learning_rate" + (" or --advantage_clip_min 0" if unlearns else "")

    def _announce(self) -> None:
        args, negative = self.args, int((self.data.weights < 0).sum())
        logger.info("***** Running training *****")
        logger.info("  Rows = %d, of which %d with a negative advantage", len(self.data), negative)
        logger.info("  Batch = %d a process and pass, %d in total", args.train_batch_size, self.batch_size)
        epochs = self.max_train_steps * self.batch_size / len(self.data)
        logger.info("  Optimizer steps = %d (%.1f passes over the data)", self.max_train_steps, epochs)


def _train_steps(args: Namespace, num_rows: int, batch_size: int, default: int) -> int:
    if args.max_train_steps is not None:
        return args.max_train_steps
    if args.num_train_epochs is not None:
        return math.ceil(args.num_train_epochs * num_rows / batch_size)
    return default
