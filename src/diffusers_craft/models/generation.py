# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images of the refined prompts, one random generator per row, unusable images marked.

A row's picture depends on its own seed and on the batch that it stands in (to rounding), never on the order of
execution: batches are cut at fixed places, so a run that was interrupted ends with the same bytes on a CPU.
"""

import hashlib
import inspect
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tqdm.auto import tqdm

from ..core.records import CANDIDATE_SCHEMA, derive_seed, pack_latent
from ..core.workdir import Stage
from ..errors import UserError
from .checks import warn_of_cut_prompts
from .latents import decode_latents
from .loading import denoiser_name


ROWS_PER_SHARD = 64  # images: the most that a killed run repeats
BLACK_LEVEL = 2  # of 255: an image with no brighter pixel is black (a filtered or overflown decode)
FLAT_RANGE = 2  # of 255: an image whose every channel varies by no more is constant
_PROMPT_COLUMNS = ["row", "group", "variant", "prompt", "refined_prompt"]
_SAMPLER_KEYS = ("prediction_type", "beta_schedule", "timestep_spacing", "steps_offset", "algorithm_type")
_SAMPLER_KEYS += ("solver_order", "use_karras_sigmas", "rescale_betas_zero_snr", "skip_prk_steps")


@dataclass(frozen=True)
class GenerationSettings:
    """How images are sampled. `None` means the pipeline's own default.

    Args:
        resolution (`int`, *optional*): height and width in pixels.
        num_inference_steps (`int`, *optional*, defaults to 30): denoising steps.
        guidance_scale (`float`, *optional*): classifier-free guidance weight.
        batch_size (`int`, *optional*, defaults to 8): images that are generated together.
    """

    resolution: int | None = None
    num_inference_steps: int = 30
    guidance_scale: float | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise UserError(f"--num_inference_steps: expected at least 1, found {self.num_inference_steps}")
        if not 1 <= self.batch_size <= ROWS_PER_SHARD:
            raise UserError(f"--generation_batch_size: expected 1 to {ROWS_PER_SHARD}, found {self.batch_size}")

    def resolve(self, pipeline: DiffusionPipeline) -> "GenerationSettings":
        """The same settings with the pipeline's defaults filled in.

        Raises:
            UserError: if the resolution is no multiple of the VAE's factor.
        """
        factor = pipeline.vae_scale_factor
        resolution = self.resolution or getattr(pipeline, denoiser_name(pipeline)).config.sample_size * factor
        if resolution < factor or resolution % factor:
            raise UserError(f"--resolution: expected a multiple of {factor} pixels, found {resolution}")
        guidance = self.guidance_scale
        if guidance is None:
            guidance = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
        return replace(self, resolution=resolution, guidance_scale=float(guidance))


@dataclass
class GeneratedBatch:
    """B generated images."""

    images: list[Image.Image]  # RGB
    latents: np.ndarray  # (B, C, h, w) float32, the final ones in the denoiser's scale
    problems: list[str | None]  # why an image is NaN, black or constant; `None` where it is valid

    @property
    def valid(self) -> np.ndarray:
        """(B,) bool: images without a problem."""
        return np.array([problem is None for problem in self.problems], dtype=bool)


def generate_images(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings
) -> GeneratedBatch:
    """Generates one image per prompt; initial noise and sampler noise of a row come from its own seed, drawn on the CPU.

    Args:
        pipeline (`DiffusionPipeline`): a Stable Diffusion text-to-image pipeline.
        prompts (`Sequence[str]`): B prompts.
        seeds (`Sequence[int]`): B seeds in [0, 2**63).
        settings (`GenerationSettings`): how to sample; batches of `settings.batch_size` are cut in order.

    Returns:
        `GeneratedBatch`: B images with their latents and validity.
    """
    if len(prompts) != len(seeds):
        raise UserError(f"seeds: expected one for each of {len(prompts)} prompts, found {len(seeds)}")
    settings = settings.resolve(pipeline)
    options = {name: value for name, value in asdict(settings).items() if name not in ("resolution", "batch_size")}
    options |= {"height": settings.resolution, "width": settings.resolution, "output_type": "latent"}
    images, latents, problems = [], [], []
    with _silent(pipeline):
        for start in range(0, len(prompts), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
            batch = pipeline(prompt=list(prompts[rows]), generator=generators, **options).images
            pictures, finite = decode_latents(pipeline, batch)
            images += pictures
            problems += [find_problem(image) if ok else "not finite" for image, ok in zip(pictures, finite)]
            latents.append(batch.float().cpu().numpy())
    return GeneratedBatch(images, np.concatenate(latents) if latents else np.zeros((0, 0, 0, 0)), problems)


def find_problem(image: Image.Image) -> str | None:
    """Why an image is unusable: "black", "constant", or `None`."""
    extrema = image.convert("RGB").getextrema()  # (low, high) of each channel, 0 to 255
    if all(high <= BLACK_LEVEL for _, high in extrema):
        return "black"
    if all(high - low <= FLAT_RANGE for low, high in extrema):
        return "constant"
    return None


@contextmanager
def _silent(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Hides what the pipeline would show for every batch, and puts the caller's settings back."""
    bar, verbosity = getattr(pipeline, "_progress_bar_config", {}), diffusers_logging.get_verbosity()
    pipeline.set_progress_bar_config(disable=True)
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        pipeline._progress_bar_config = bar
        diffusers_logging.set_verbosity(verbosity)


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes at compression level 1: lossless, and several times faster than the default level."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def describe_sampler(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The scheduler's class and those of its settings that change an image."""
    config = pipeline.scheduler.config
    return {"class": type(pipeline.scheduler).__name__, **{key: config[key] for key in _SAMPLER_KEYS if key in config}}


def describe_model(pipeline: DiffusionPipeline) -> tuple[str, str]:
    """Name and revision of a pipeline; the revision is a hash of its weights, so a retrained folder is another model.

    Hashes the shape and the first 64 values of every parameter: reading all of them would take minutes for a large
    model, and no training leaves any tensor's beginning as it was.
    """
    digest = hashlib.sha256()
    for component, module in sorted(pipeline.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, value in module.state_dict().items():
                head = value.flatten()[:64].float().cpu().numpy()
                digest.update(f"{component}.{name}{tuple(value.shape)}".encode() + head.tobytes())
    return str(pipeline.name_or_path or "unnamed").rstrip("/").split("/")[-1], digest.hexdigest()[:16]


def generation_options(
    pipeline: DiffusionPipeline, settings: GenerationSettings, seed: int, save_latents: bool
) -> dict[str, Any]:
    """What determines the candidates, under the names of the flags, for the work folder's record.

    The batch size is left out: it changes an image by no more than rounding, and a user who ran out of memory must be
    able to go on with a smaller one.
    """
    resolved = asdict(settings.resolve(pipeline))
    del resolved["batch_size"]
    name, revision = describe_model(pipeline)
    return {
        "pretrained_model_name_or_path": f"{name} (weights {revision})",
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "scheduler": describe_sampler(pipeline),
        **resolved,
        "seed": seed,
        "save_latents": save_latents,
    }


def generate_candidates(
    pipeline: DiffusionPipeline,
    refined: pa.Table,
    settings: GenerationSettings,
    stage: Stage,
    seed: int,
    save_latents: bool = False,
    shards: Sequence[int] | None = None,
) -> None:
    """Generates one image for each row of `REFINED_SCHEMA` and writes rows of `CANDIDATE_SCHEMA`, shard by shard.

    A row's seed is derived from the run's `seed`, its group and its variant, and stored. Latents are stored in float16.
    By default all `shards` that are missing are made.
    """
    settings = settings.resolve(pipeline)
    shards = stage.missing() if shards is None else shards
    constants = _shared_columns(pipeline, settings)
    if 0 in shards:  # once, of all processes
        warn_of_cut_prompts(pipeline, refined["refined_prompt"].to_pylist(), "prompts")
    total = sum(len(stage.rows(shard)) for shard in shards)
    with tqdm(total=total, desc="Generating", unit="image", disable=not total) as bar, ThreadPoolExecutor() as pool:
        for shard in shards:
            rows = refined.slice(stage.rows(shard).start, len(stage.rows(shard))).select(_PROMPT_COLUMNS).to_pylist()
            encoded: list[Future[bytes]] = []
            for start in range(0, len(rows), settings.batch_size):
                batch = rows[start : start + settings.batch_size]
                seeds = [derive_seed(seed, "candidate", row["group"], row["variant"]) for row in batch]
                made = generate_images(pipeline, [row["refined_prompt"] for row in batch], seeds, settings)
                # Encoding runs beside the next batch's generation.
                encoded += [pool.submit(encode_png, image) for image in made.images]
                for row, own_seed, latent, problem in zip(batch, seeds, made.latents, made.problems):
                    stored = pack_latent(latent) if save_latents else None
                    row |= constants | {
                        "seed": own_seed,
                        "valid": problem is None,
                        "problem": problem,
                        "latent": stored,
                    }
                bar.update(len(batch))
            for row, png in zip(rows, encoded, strict=True):
                row["image"] = {"bytes": png.result(), "path": None}
            stage.write(shard, pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA))


def _shared_columns(pipeline: DiffusionPipeline, settings: GenerationSettings) -> dict[str, Any]:
    """The columns that all candidates of a run share."""
    name, revision = describe_model(pipeline)
    sampler = describe_sampler(pipeline)
    keys = ", ".join(f"{key}={value}" for key, value in sampler.items() if key != "class")
    return {
        "sampler": f"{sampler['class']}({keys})",
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "model": name,
        "model_revision": revision,
    }
