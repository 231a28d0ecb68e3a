# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What every reward model is: prompts and images in, one raw score per pair out; batching, checks and precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.bars import one_bar
from ..errors import UserError
from .checkpoints import checkpoint_revision, find_checkpoint, tower_precision


def l2_normalize(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows of a (B, D) tensor scaled to length one, in float32."""
    embeddings = embeddings.float()
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Row-wise cosines of two (B, D) tensors, in float32: (B,)."""
    return (l2_normalize(first) * l2_normalize(second)).sum(-1)


def feature_tensor(output: torch.Tensor | Any) -> torch.Tensor:
    """What `CLIPModel.get_*_features` returns: a tensor, or since transformers 5 inside an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class Reward(ABC):
    """A reward model. Making one resolves its checkpoint files; the weights are loaded by the first `score`.

    Subclasses set `name` and `unit`, resolve their files in `__init__`, and implement `_load` and `_score`. They are
    used as `--rewards my_module:MyReward`, by `register_reward`, or as an entry point of the group
    `diffusers_craft.rewards`. Optional are `abstains = True` (a score may be NaN: no answer), `reads_prompts = False`
    (images without captions are scored, too), `note` (a sentence for the reports of evaluations) and
    `bind(prompt_set) -> bool` (learns the prompts of an evaluation, and says whether it can judge them).

        class Redness(Reward):
            name, unit = "redness", "mean of the red channel, 0 to 255"

            def _load(self):
                return None  # what `self.model` gives

            def _score(self, prompts, images):
                return torch.tensor([float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images])

    Args:
        device (`str` or `torch.device`, *optional*): defaults to a GPU if there is one.
        dtype (`torch.dtype`, *optional*): of the towers. Defaults to float16 autocast on a GPU and float32 on a CPU;
            normalisation, dot products and heads are float32 always.
        batch_size (`int`, defaults to 16): images per forward pass.
    """

    name: str
    unit: str  # convention of the raw score, e.g. "cosine, no logit scale"
    reads_prompts: bool = True

    def __init__(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None, batch_size: int = 16
    ):
        if batch_size < 1:
            raise UserError(f"batch_size of reward {self.name}: expected at least 1, found {batch_size}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self.batch_size = batch_size

    @property
    def checkpoint(self) -> dict[str, Any]:
        """`{"checkpoint": ..., "revision": ...}` of the weights; for a reward without files the place of its class."""
        return {"checkpoint": f"{type(self).__module__}:{type(self).__qualname__}"}

    @property
    def source(self) -> dict[str, Any]:
        """What determines a score besides prompt and image: checkpoint, revision, unit and precision."""
        return {**self.checkpoint, "unit": self.unit, "dtype": str(self.dtype).removeprefix("torch.")}

    @abstractmethod
    def _load(self) -> Any:
        """The model with everything it needs, on `self.device`."""

    @abstractmethod
    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        """Raw scores of B pairs: (B,) float32 on any device."""

    @cached_property
    def model(self) -> Any:
        """The loaded model; the first access reads the weights."""
        with one_bar():
            return self._load()

    def release(self) -> None:
        """Frees the weights; the next `score` loads them again."""
        self.__dict__.pop("model", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batched(self, function: Callable[..., torch.Tensor], *columns: list) -> torch.Tensor:
        """What `function` gives for at most `batch_size` rows of the columns at a time, concatenated."""
        batches = [slice(i, i + self.batch_size) for i in range(0, len(columns[0]), self.batch_size)]
        return torch.cat([function(*(column[rows] for column in columns)) for rows in batches])

    def _autocast(self) -> AbstractContextManager[None]:
        return tower_precision(self.device, self.dtype)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Scores each image against the prompt of the same index.

        Args:
            prompts (`Sequence[str]`): B prompts; repeated ones are encoded once.
            images (`Sequence[PIL.Image.Image]`): B images of any mode and size.

        Returns:
            `np.ndarray`: (B,) float32 raw scores, higher is better; see `source["unit"]`.

        Raises:
            UserError: if the lengths differ, or a prompt or image is of another type.
        """
        who = f"of reward {self.name}"
        if isinstance(prompts, str):
            raise UserError(f"prompts {who}: expected a list of texts, found one text")
        prompts, images = list(prompts), list(images)
        if len(prompts) != len(images):
            raise UserError(f"images {who}: expected one for each of {len(prompts)} prompts, found {len(images)}")
        for kind, values, wanted in (("prompts", prompts, str), ("images", images, Image.Image)):
            for i, value in enumerate(values):
                if not isinstance(value, wanted):
                    expected = f"expected {wanted.__module__}.{wanted.__name__}"
                    raise UserError(f"{kind} {who}: {expected}, found {type(value).__name__} at index {i}")
        if not images:
            return np.zeros(0, dtype=np.float32)
        with torch.inference_mode():
            return self._score(prompts, images).float().cpu().numpy()


class CheckpointReward(Reward):
    """A reward whose weights are one file or folder: the official one of the Hub, or the user's own `checkpoint`."""

    hub_id: str
    revision: str | None = None  # commit of `hub_id`; the newest by default
    filename: str | None = None  # of the weights; without one they are a folder of transformers
    architecture: str = "CLIPModel"  # of such a folder
    size: str  # of the download, e.g. "1.97 GB"
    rests_in_half: bool = False  # see `rest_in_checkpoint_precision`

    def __init__(self, checkpoint: str | None = None, **options: Any):
        super().__init__(**options)
        if self.rests_in_half and self.device.type == "cpu" and self.dtype != torch.float32:
            found = str(self.dtype).removeprefix("torch.")  # where the norms would mix it with float32
            raise UserError(f"--reward_precision: expected fp32 or auto for {self.name} on a CPU, found {found}")
        self._asked = checkpoint or self.hub_id
        self._path = self._find(checkpoint)

    def _find(self, checkpoint: str | None) -> Path:
        """The file or folder of the weights; downloads it if need be."""
        place, revision = (checkpoint, None) if checkpoint else (self.hub_id, self.revision)
        path = find_checkpoint(self.name, place, self.filename, self.size, revision)
        if self.filename is None and not (config := path / "config.json").exists():
            expected = f"expected a {self.architecture} folder"
            raise UserError(f"--reward_checkpoint {self.name}: {expected}, found no {config}")
        return path

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        # Of a local path only the name is kept: the hash tells versions apart, and a folder may move.
        named = self._path.name if Path(self._asked).expanduser().exists() else self._asked
        return {"checkpoint": named, "revision": checkpoint_revision(self._path)}


class PromptImageReward(CheckpointReward):
    """A reward of separate text and image towers: `_scale()` times the cosine of their embeddings.

    Subclasses implement `encode_images(images)` and `encode_prompts(prompts)`: (B, D) embeddings of one batch.
    """

    def _scale(self) -> torch.Tensor | float:
        return 1.0

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        distinct = list(dict.fromkeys(prompts))
        text = self._batched(self.encode_prompts, distinct)
        index = {prompt: i for i, prompt in enumerate(distinct)}
        rows = [index[prompt] for prompt in prompts]
        scores = self._batched(lambda batch, of: cosines(self.encode_images(batch), text[of]), images, rows)
        return scores * self._scale()
