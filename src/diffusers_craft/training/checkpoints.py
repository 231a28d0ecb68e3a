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


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, state: dict) -> Path:
    """Writes `checkpoint-{step}` under a temporary name and renames it.

    Args:
        accelerator (`Accelerator`): holds model, optimizer and schedule; all processes call this function.
        output_dir (`str` or `Path`): the run's folder.
        step (`int`): finished optimizer steps.
        state (`dict`): what else the run must remember, as JSON.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    temporary = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        for leftover in Path(output_dir).glob(".checkpoint-*.tmp"):  # of a killed run
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        atomic_write_json(temporary / _STATE_FILE, state | {"step": step})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        logger.info("Saved %s", final)
    accelerator.wait_for_everyone()
    return final


def drop_old_checkpoints(output_dir: str | Path, total_limit: int | None) -> None:
    """Deletes the oldest checkpoints above the limit."""
    for old in list_checkpoints(output_dir)[: -total_limit if total_limit else 0]:
        shutil.rmtree(old)


def read_state(path: Path) -> dict:
    """What `save_checkpoint` was given as `state`, and `step`."""
    return json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))


def keep_denoiser_in_checkpoints(
    accelerator: Accelerator, ema: EMAModel | None, weights: FullWeights | LoraWeights
) -> None:
    """Makes `save_state` write `weights` and, of a UNet, `unet_ema/` as diffusers' files, and `load_state` read them."""
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
