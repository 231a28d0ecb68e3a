# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a training run keeps besides its weights: checkpoints that appear whole, and metrics that never stall the device."""

import json
import logging
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from ..core.files import atomic_write_json
from ..errors import UserError
from .weights import FullWeights, LoraWeights, whole_denoiser


logger = logging.getLogger(__name__)

_STATE_FILE = "training_state.json"


def checkpoint_step(path: Path) -> int:
    """Of a folder `checkpoint-{step}`."""
    return int(path.name.rpartition("-")[2])


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / _STATE_FILE).is_file()
    }
    return [found[step] for step in sorted(found)]


def find_checkpoint(resume_from: str, output_dir: str | Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; `None` for `latest` in a folder that has none yet.

    Raises:
        UserError: if a path is given and holds no finished checkpoint.
    """
    if resume_from == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            logger.warning("--resume_from_checkpoint: no checkpoint in %s, starting a new run.", output_dir)
        return checkpoints[-1] if checkpoints else None
    given = Path(resume_from)
    for path in (given, Path(output_dir) / given.name):  # diffusers takes the name alone, too
        if (path / _STATE_FILE).is_file():
            return path
    raise UserError(
        f"--resume_from_checkpoint: expected `latest` or the folder of a finished checkpoint, found {resume_from!r}"
    )


class Checkpoints:
    """The checkpoints that a run writes; all processes call its methods.

    Args:
        accelerator (`Accelerator`): holds model, optimizer and schedule.
        output_dir (`str` or `Path`): the run's folder.
        total_limit (`int`, *optional*): how many to keep.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path, total_limit: int | None) -> None:
        self.accelerator, self.output_dir, self.total_limit = accelerator, Path(output_dir), total_limit
        self._newest: int | None = None  # until the loss after it is known

    def save(self, step: int, state: dict) -> Path:
        """Writes `checkpoint-{step}` under a temporary name and renames it.

        Args:
            step (`int`): finished optimizer steps.
            state (`dict`): what else the run must remember, as JSON.
        """
        final = self.output_dir / f"checkpoint-{step}"
        temporary = final.with_name(f".{final.name}.tmp")
        if self.accelerator.is_main_process:
            for leftover in self.output_dir.glob(".checkpoint-*.tmp"):  # of a killed run
                shutil.rmtree(leftover)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            atomic_write_json(temporary / _STATE_FILE, state | {"step": step})
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            logger.info("Saved %s", final)
        self.accelerator.wait_for_everyone()
        self._newest = step
        return final

    def drop_old(self, finite_step: int) -> None:
        """Rotation, once the loss after the newest checkpoint is known to be finite: until then the one before it stays."""
        if self._newest is None or finite_step <= self._newest:
            return
        self._newest = None
        if self.accelerator.is_main_process:
            for old in list_checkpoints(self.output_dir)[: -self.total_limit if self.total_limit else 0]:
                shutil.rmtree(old)


def read_state(path: Path) -> dict:
    """What `Checkpoints.save` was given as `state`, and `step`."""
    return json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))


def keep_denoiser_in_checkpoints(
    accelerator: Accelerator, ema: EMAModel | None, weights: FullWeights | LoraWeights
) -> None:
    """Makes `save_state` write `weights` and the averages (`unet_ema/`) as diffusers' files, and `load_state` read them."""
    averages = f"{weights.component}_ema"

    def save(models: list, state_dicts: list, folder: str) -> None:
        for model in models:
            denoiser = whole_denoiser(accelerator, model)
            if accelerator.is_main_process:
                weights.save(denoiser, folder)
        if ema is not None and accelerator.is_main_process:
            ema.save_pretrained(Path(folder) / averages)
        state_dicts.clear()  # tells accelerate that they are saved

    def load(models: list, folder: str) -> None:
        while models:  # an emptied list tells accelerate that they are loaded
            weights.load(accelerator.unwrap_model(models.pop()), folder)
        if ema is not None:
            path = Path(folder) / averages
            if not path.is_dir():
                raise UserError(f"--use_ema: expected a checkpoint with {averages}/, found none in {folder}")
            ema.load_state_dict(EMAModel.from_pretrained(path, ema.model_cls).state_dict())
            ema.to(accelerator.device)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
