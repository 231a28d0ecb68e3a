# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishing a training run as it goes on."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.run_record import local_paths
from ..data.rows import TrainingData
from ..hub.model import LAST_CHECKPOINT, publish_model
from ..hub.upload import HubRepo
from ..models.family import Family
from ..tiny import MODELS
from .settings import TrainingSettings


logger = logging.getLogger(__name__)

_CAPTIONS_SHOWN = 4


class TrainingHub:
    """What `--push_to_hub` asks for; without that flag nothing happens here.

    Args:
        settings (`TrainingSettings`): whether, where and what to publish.
        options (`Mapping`): what the run records.
        is_main (`bool`): whether this is the process that writes files; others publish nothing.

    Attributes:
        paths (`dict[str, str]`): `local_paths` of the options as the run begins, since they may be gone at its end.

    Raises:
        UserError: if this account may not write to `--hub_model_id`; before anything is trained.
    """

    def __init__(self, settings: TrainingSettings, options: Mapping[str, Any], is_main: bool) -> None:
        self.settings, self.is_active = settings, settings.push_to_hub and is_main
        self.repo_id = settings.hub_model_id or Path(settings.output_dir).resolve().name
        self.repo = HubRepo(self.repo_id, "model", settings.hub_private_repo or None)
        self.paths = {text: path for text, path in local_paths(options).items() if text not in MODELS}
        if self.is_active:
            self.repo.open()

    def push_checkpoint(self, folder: Path) -> None:
        """Replaces `last-checkpoint/` on the Hub with `--hub_strategy checkpoint`; a failure does not stop the run."""
        if not self.is_active or self.settings.hub_strategy != "checkpoint":
            return
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        named = {f"{LAST_CHECKPOINT}/{name}": path for name, path in files.items()}
        try:
            repo = replace(self.repo, retry="training goes on, and the next checkpoint is sent")
            repo.upload(folder.parent, named, folder.name, (f"{LAST_CHECKPOINT}/*",))
        except ValueError as error:
            logger.warning("%s was not published: %s", folder.name, error)

    def push_result(self) -> None:
        """Publishes the finished run.

        Raises:
            UserError: if the upload fails; everything is saved by then.
        """
        if self.is_active:
            command = ["python", "publish_craft.py", "--output_dir", self.settings.output_dir]
            command += ["--hub_model_id", self.repo_id]
            command += ["--push_unet_only"] * self.settings.push_unet_only
            command += ["--hub_private_repo"] * self.settings.hub_private_repo
            publish_model(
                self.settings.output_dir,
                self.repo_id,
                self.settings.push_unet_only,
                private=self.settings.hub_private_repo or None,
                retry=f"to publish it, run `{shlex.join(command)}`",
            )


def card_facts(family: Family, data: TrainingData, device: torch.device) -> dict[str, Any]:
    """What a card says beyond the run's options and results: `family`, a few `captions` and the `device` by its name."""
    captions = [caption for caption in data.captions if caption][:_CAPTIONS_SHOWN]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {"family": family.name, "captions": captions, "device": name}
