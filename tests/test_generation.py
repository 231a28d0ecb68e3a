# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Generation: a row's picture depends on its own seed, bad pictures are marked, shards resume to the same bytes."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from diffusers_craft import GenerationSettings, generate_images, load_pipeline
from diffusers_craft.core.records import CANDIDATE_SCHEMA, REFINED_SCHEMA, unpack_latent
from diffusers_craft.models.generation import describe_model, find_problem
from diffusers_craft.models.latents import decode_latents
from diffusers_craft.scripts import WorkDir, derive_seed, generate_candidates, generation_options


SETTINGS = GenerationSettings(num_inference_steps=2, guidance_scale=3.0, batch_size=2)


@pytest.fixture(scope="module", params=["random_sd15", "random_sdxl"])
def pipeline(request: pytest.FixtureRequest):
    return load_pipeline(str(request.getfixturevalue(request.param)), device="cpu")


@pytest.fixture(scope="module")
def sd15(random_sd15: Path):
    return load_pipeline(str(random_sd15), device="cpu")


def refined_table(num_groups: int, num_variants: int) -> pa.Table:
    rows = [
        {
            "row": i * num_variants + j,
            "group": i,
            "variant": j,
            "prompt": f"prompt {i}",
            "refined_prompt": f"prompt {i}, version {j}",
            "refined": j > 0,
            "refiner": "template",
        }
        for i in range(num_groups)
        for j in range(num_variants)
    ]
    return pa.Table.from_pylist(rows, schema=REFINED_SCHEMA)


def test_agrees_with_the_pipeline_s_own_images(pipeline) -> None:
    """The oracle is the pipeline called alone for one row, with its own decoding."""
    made = generate_images(pipeline, ["a cat", "a dog", "a hut"], [5, 6, 7], SETTINGS)
    assert made.valid.all() and made.problems == [None] * 3 and made.latents.shape == (3, 4, 8, 8)
    for prompt, seed, image in zip(["a cat", "a dog", "a hut"], [5, 6, 7], made.images):
        generator = torch.Generator("cpu").manual_seed(seed)
        own = pipeline(prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images[0]
        assert image.size == (64, 64)
        assert np.abs(np.asarray(own, int) - np.asarray(image, int)).max() <= 1


def test_same_seed_same_bytes_and_other_seed_other_image(sd15) -> None:
    first, again = (generate_images(sd15, ["a cat"] * 2, [1, 2], SETTINGS) for _ in range(2))
    assert np.array_equal(first.latents, again.latents)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert not np.allclose(first.latents[0], first.latents[1])


def test_stored_latents_decode_to_the_images(pipeline) -> None:
    made = generate_images(pipeline, ["a cat"], [3], SETTINGS)
    images, finite = decode_latents(pipeline, torch.from_numpy(made.latents))
    assert finite == [True] and images[0].tobytes() == made.images[0].tobytes()


def test_unset_settings_are_the_pipeline_s_own(pipeline) -> None:
    resolved = GenerationSettings().resolve(pipeline)
    default = 5.0 if "XL" in type(pipeline).__name__ else 7.5
    assert (resolved.resolution, resolved.guidance_scale) == (64, default)


def test_the_progress_bar_setting_of_the_caller_is_kept(sd15) -> None:
    sd15.set_progress_bar_config(disable=True, desc="mine")
    generate_images(sd15, ["a cat"], [1], SETTINGS)
    assert sd15._progress_bar_config == {"disable": True, "desc": "mine"}


def test_no_prompts_give_no_images(sd15) -> None:
    made = generate_images(sd15, [], [], SETTINGS)
    assert made.images == [] and made.problems == [] and len(made.latents) == len(made.valid) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: GenerationSettings(batch_size=0), "--generation_batch_size: expected 1 to 64, found 0"),
        (lambda p: GenerationSettings(batch_size=65), "--generation_batch_size: expected 1 to 64, found 65"),
        (
            lambda p: GenerationSettings(resolution=60).resolve(p),
            "--resolution: expected a multiple of 8 pixels, found 60",
        ),
        (lambda p: generate_images(p, ["a"], [], SETTINGS), "seeds: expected one for each of 1 prompts, found 0"),
    ],
)
def test_error_texts(sd15, make, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make(sd15)
    assert str(error.value) == message


def test_find_problem() -> None:
    assert find_problem(Image.new("RGB", (8, 8))) == "black"
    assert find_problem(Image.new("RGB", (8, 8), (0, 0, 90))) == "constant"
    noisy_black = np.random.default_rng(0).integers(0, 3, (8, 8, 3), dtype=np.uint8)
    assert find_problem(Image.fromarray(noisy_black)) == "black"
    night = np.zeros((8, 8, 3), np.uint8)
    night[0, 0] = 255
    assert find_problem(Image.fromarray(night)) is None


def test_nan_black_and_constant_images_are_marked(sd15, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE that overflows for one row must not touch the rows beside it."""
    decode = sd15.vae.decode

    def faulty(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        pixels = decode(latents, return_dict=return_dict)[0].clone()
        pixels[0], pixels[1], pixels[2] = float("nan"), -1.0, 0.5
        return (pixels,)

    monkeypatch.setattr(sd15.vae, "decode", faulty)
    settings = GenerationSettings(num_inference_steps=1, guidance_scale=1.0, batch_size=4)
    made = generate_images(sd15, ["a"] * 4, [1, 2, 3, 4], settings)
    assert made.problems == ["not finite", "black", "constant", None]
    assert made.valid.tolist() == [False, False, False, True]


def test_half_precision_vae_is_decoded_in_float32_and_put_back(sd15) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sd15.vae.to(torch.float16)
    try:
        seen = []
        handle = sd15.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
        decode_latents(sd15, latents.half())
        handle.remove()
        assert seen == [torch.float32] and sd15.vae.dtype == torch.float16
    finally:
        sd15.vae.to(torch.float32)


def test_candidates_have_their_provenance(sd15, tmp_path: Path) -> None:
    stage = WorkDir(tmp_path).stage("candidates", {}, 6, 4)
    generate_candidates(sd15, refined_table(2, 3), SETTINGS, stage, seed=9, save_latents=True)
    table = stage.read()
    assert table.schema == CANDIDATE_SCHEMA and table["row"].to_pylist() == list(range(6))
    row = table.to_pylist()[4]
    assert (row["group"], row["variant"]) == (1, 1)
    assert (row["prompt"], row["refined_prompt"]) == ("prompt 1", "prompt 1, version 1")
    assert row["seed"] == derive_seed(9, "candidate", 1, 1)
    assert row["sampler"].startswith("DDIMScheduler(prediction_type=epsilon, ")
    assert (row["num_inference_steps"], row["guidance_scale"]) == (2, 3.0)
    assert (row["model"], row["model_revision"]) == describe_model(sd15)
    expected = generate_images(sd15, [row["refined_prompt"]], [row["seed"]], SETTINGS)
    stored = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert np.abs(np.asarray(stored, int) - np.asarray(expected.images[0], int)).max() <= 1
    assert np.abs(unpack_latent(row["latent"]).astype(np.float32) - expected.latents[0]).max() < 0.02
    assert len(set(table["seed"].to_pylist())) == 6


def test_latents_are_not_stored_unless_asked(sd15, tmp_path: Path) -> None:
    stage = WorkDir(tmp_path).stage("candidates", {}, 2, 2)
    generate_candidates(sd15, refined_table(1, 2), SETTINGS, stage, seed=0)
    assert stage.read(["latent"])["latent"].to_pylist() == [None, None]


def test_shards_made_in_any_order_have_the_same_bytes(sd15, tmp_path: Path) -> None:
    refined = refined_table(3, 3)
    whole, parts = (WorkDir(tmp_path / name).stage("candidates", {}, 9, 4) for name in ("whole", "parts"))
    generate_candidates(sd15, refined, SETTINGS, whole, seed=1)
    generate_candidates(sd15, refined, SETTINGS, parts, seed=1, shards=[2])
    generate_candidates(sd15, refined, SETTINGS, parts, seed=1)
    for shard in range(3):
        assert parts.shard_path(shard).read_bytes() == whole.shard_path(shard).read_bytes()


def test_model_revision_changes_with_the_weights_only(random_sd15: Path) -> None:
    first, second = (load_pipeline(str(random_sd15), device="cpu") for _ in range(2))
    assert describe_model(first) == describe_model(second)
    assert describe_model(first)[0] == "random-sd15"
    with torch.no_grad():
        second.unet.conv_out.bias += 1e-3
    assert describe_model(first)[1] != describe_model(second)[1]


def test_options_name_what_decides_the_images(sd15) -> None:
    options = generation_options(sd15, SETTINGS, seed=4, save_latents=False)
    assert options["guidance_scale"] == 3.0 and options["resolution"] == 64 and options["seed"] == 4
    assert options["scheduler"]["class"] == "DDIMScheduler"
    assert "batch_size" not in options
