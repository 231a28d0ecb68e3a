# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The rows that pass between stages, one for each candidate image, and seeds derived from identities.

Group i holds prompt i's images by variant: 0 is of the prompt itself, 1 .. R * S of R refinements with S seeds each.
"""

import hashlib
import io
import json
import numbers

import numpy as np
import pyarrow as pa


_IDENTITY = [
    pa.field("row", pa.int64(), False),  # position in the flat list of candidates: a candidate's stable identity
    pa.field("group", pa.int64(), False),  # prompt index i
    pa.field("variant", pa.int64(), False),  # j within the group; 0 is the image of the original prompt
    pa.field("prompt", pa.string(), False),  # the original one: scored against and trained on
    pa.field("refined_prompt", pa.string(), False),  # generates the image; equal to `prompt` where nothing was refined
]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # a PNG file, null; as `datasets.Image` stores it

REFINED_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        pa.field("refined", pa.bool_(), False),  # not where the original was kept: variant 0, no refiner, or it failed
        pa.field("refiner", pa.string(), False),  # its name
    ]
)

CANDIDATE_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        pa.field("seed", pa.int64(), False),  # of the initial and the sampler's noise, in [0, 2**63)
        pa.field("image", _IMAGE),
        pa.field("valid", pa.bool_(), False),  # not where an image must never be selected (black, constant, NaN)
        pa.field("problem", pa.string()),  # why an image is not valid
        pa.field("sampler", pa.string()),  # scheduler class with its key settings
        pa.field("num_inference_steps", pa.int64()),
        pa.field("guidance_scale", pa.float64()),  # classifier-free; 1 is none
        pa.field("model", pa.string()),  # name or path of the pipeline
        pa.field("model_revision", pa.string()),  # null if unknown
        pa.field("latent", pa.binary()),  # scaled, see `pack_latent`; null unless kept
    ]
)

# The raw reward of each image for its `prompt`; NaN where the image is not valid.
SCORE_SCHEMA = pa.schema([pa.field("row", pa.int64(), False), pa.field("score", pa.float32(), False)])


def derive_seed(seed: int, *identity: str | int) -> int:
    """A seed in [0, 2**63) by a run's seed and who asks (`"candidate", group, variant`), not by when it asks."""
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
