# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The rows that pass between stages: what a column means, its type and its unit; and seeds derived from identities.

One row is one candidate image. Candidates form groups: group i holds the images of prompt i, sorted by variant.
Variant 0 is the image of the original prompt, variants 1 .. R * S come from R refinements with S seeds each.

Columns of all tables (refined, candidates, scores):

    row                  int64    position in the flat candidate list, 0 .. num_rows - 1; a candidate's stable identity
    group                int64    prompt index i
    variant              int64    j within the group; 0 is the image of the original prompt
    prompt               string   the original prompt: scored against and trained on
    refined_prompt       string   the text that generates the image; equal to `prompt` where nothing was refined
    refined              bool     False where the original was kept: variant 0, refiner "none", or it failed
    refiner              string   name of the refiner
    seed                 int64    seed of the initial and the sampler's noise, in [0, 2**63)
    image                struct   `bytes`: PNG, `path`: null (what `datasets.Image` reads)
    valid                bool     False for an image that must never be selected (black, constant, NaN)
    problem              string   why an image is not valid, else null
    sampler              string   scheduler class with its key settings
    num_inference_steps  int64    denoising steps
    guidance_scale       float64  classifier-free guidance; 1 is none
    model                string   name or path of the pipeline
    model_revision       string   its revision, null if unknown
    latent               binary   float16 (C, h, w) scaled latent, see `pack_latent`; null unless kept
    score                float32  raw reward of the image for `prompt`; NaN where the image is not valid
"""

import hashlib
import io
import json
import numbers

import numpy as np
import pyarrow as pa


_IDENTITY = [pa.field(name, pa.int64(), False) for name in ("row", "group", "variant")]
_PROMPTS = [pa.field(name, pa.string(), False) for name in ("prompt", "refined_prompt")]

REFINED_SCHEMA = pa.schema(
    [*_IDENTITY, *_PROMPTS, pa.field("refined", pa.bool_(), False), pa.field("refiner", pa.string(), False)]
)

CANDIDATE_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        *_PROMPTS,
        pa.field("seed", pa.int64(), False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("valid", pa.bool_(), False),
        pa.field("problem", pa.string()),
        pa.field("sampler", pa.string()),
        pa.field("num_inference_steps", pa.int64()),
        pa.field("guidance_scale", pa.float64()),
        pa.field("model", pa.string()),
        pa.field("model_revision", pa.string()),
        pa.field("latent", pa.binary()),
    ]
)

SCORE_SCHEMA = pa.schema([pa.field("row", pa.int64(), False), pa.field("score", pa.float32(), False)])


def derive_seed(seed: int, *identity: str | int) -> int:
    """A seed that depends on a run's seed and on who asks, never on the order of asking.

    Args:
        seed (`int`): the run's seed.
        identity (`str` or `int`): what the randomness is for, e.g. `"candidate", group, variant`.

    Returns:
        `int`: in [0, 2**63), good for `torch.Generator.manual_seed` and an int64 column.
    """
    parts = [int(part) if isinstance(part, numbers.Integral) else part for part in (seed, *identity)]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def pack_latent(latent: np.ndarray) -> bytes:
    """A (C, h, w) latent as float16 bytes that carry their own shape (npy format)."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(latent, dtype="<f2"), allow_pickle=False)
    return buffer.getvalue()


def unpack_latent(data: bytes) -> np.ndarray:
    """The inverse of `pack_latent`: a (C, h, w) float16 array."""
    return np.load(io.BytesIO(data), allow_pickle=False)
