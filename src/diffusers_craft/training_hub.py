# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishing a training run as it goes on, and what it cost."""

import logging
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from .hub.model import LAST_CHECKPOINT, publish_model
from .hub.upload import HubRepo


logger = logging.getLogger(__name__)


class TrainingHub:
    """What `--push_to_hub` asks for; without that flag nothing happens here.

    Args:
        args (`argparse.Namespace`): flags of `add_training_arguments`.
        is_main (`bool`): whether this is the process that writes files; others publish nothing.

    Raises:
        ValueError: if this account may not write to `--hub_model_id`; before anything is trained.
    """

    def __init__(self, args: Namespace, is_main: bool) -> None:
        self.args, self.is_active = args, args.push_to_hub and is_main
        self.repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
        self.repo = HubRepo(self.repo_id, "model", args.hub_private_repo or None)
        if self.is_active:
            self.repo.open()

    def push_checkpoint(self, folder: Path) -> None:
        """Replaces `last-checkpoint/` on the Hub with `--hub_strategy checkpoint`; a failure does not stop the run."""
        if not self.is_active or self.args.hub_strategy != "checkpoint":
            return
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        named = {f"{LAST_CHECKPOINT}/{name}": path for name, path in files.items()}
        try:
            self.repo.upload(
                folder.parent,
                named,
                folder.name,
                (f"{LAST_CHECKPOINT}/*",),
                "training goes on, and the next checkpoint is sent",
            )
        except ValueError as error:
            logger.warning("%s was not published: %s", folder.name, error)

    def push_result(self) -> None:
        """Publishes the finished run.

        Raises:
            ValueError: if the upload fails; everything is saved by then.
        """
        if self.is_active:
            flags = f"--output_dir {self.args.output_dir} --hub_model_id {self.repo_id}"
            flags += " --push_unet_only" if self.args.push_unet_only else ""
            flags += " --hub_private_repo" if self.args.hub_private_repo else ""
            publish_model(
                self.args.output_dir,
                self.repo_id,
                self.args.push_unet_only,
                private=self.args.hub_private_repo or None,
                retry=f"to publish it, run `python publish_craft.py {flags}`",
            )


class CostMeter:
    """Time and memory of a training run, over all its resumes.

    Args:
        device (`torch.device`): where it trains.
        seconds (`float`, *optional*, defaults to 0): spent up to the checkpoint from which the run goes on.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self.device, self.started = device, time.monotonic() - seconds
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def read(self) -> dict[str, Any]:
        """`seconds` in the training loop, `device` by its name, `peak_memory_gib` of this process (`None` on a CPU)."""
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "CPU",
            "peak_memory_gib": torch.cuda.max_memory_reserved(self.device) / 2**30 if on_gpu else None,
        }
