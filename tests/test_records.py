# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Derived seeds, packed latents, and that the documented columns are those of the schemas."""

import re

import numpy as np

from diffusers_craft.core import records
from diffusers_craft.core.records import pack_latent, unpack_latent
from diffusers_craft.scripts import derive_seed


def test_seeds_are_stable_across_versions():
    """Frozen: another value here means that every user's folder would be made anew, differently."""
    assert derive_seed(0, "candidate", 3, 1) == 5132913358134654155
    assert derive_seed(0) != derive_seed(1)


def test_seeds_depend_on_every_part_of_the_identity():
    seeds = {
        derive_seed(s, stage, i, j) for s in range(3) for stage in ("a", "b") for i in range(20) for j in range(20)
    }
    assert len(seeds) == 3 * 2 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "1") != derive_seed(0, 1)
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")
    assert derive_seed(np.int64(5), "a", np.int32(2)) == derive_seed(5, "a", 2)


def test_latent_round_trip_in_half_precision():
    latent = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    packed = pack_latent(latent.transpose(0, 2, 1))
    np.testing.assert_array_equal(unpack_latent(packed), latent.transpose(0, 2, 1).astype(np.float16))
    assert pack_latent(latent) == pack_latent(latent.copy())


def test_the_columns_of_stored_tables_and_their_types():
    """Work folders of older versions are read, too."""
    columns = {}
    for schema in (records.REFINED_SCHEMA, records.CANDIDATE_SCHEMA, records.SCORE_SCHEMA):
        columns |= {field.name: re.match(r"\w+", str(field.type))[0] for field in schema}
    expected = dict.fromkeys(("row", "group", "variant", "seed", "num_inference_steps"), "int64")
    expected |= dict.fromkeys(("prompt", "refined_prompt", "refiner", "problem", "sampler"), "string")
    expected |= {"refined": "bool", "valid": "bool", "image": "struct", "latent": "binary", "score": "float"}
    assert columns == expected | {"guidance_scale": "double", "model": "string", "model_revision": "string"}
