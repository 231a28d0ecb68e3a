# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Encoding of datasets: against the VAE itself, and what makes the cache hit or miss."""

import errno
import json
import logging
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from diffusers_craft import CRAFT, SD15, SDXL, SFT, Objective, UserError, load_craft_dataset
from diffusers_craft.data.pictures import crop_image
from diffusers_craft.models.generation import encode_png
from diffusers_craft.scripts import DataSettings, ModelSource, prepare_training_data, vae_fingerprint


@pytest.fixture
def components(random_sd15):
    return SD15.load(ModelSource(str(random_sd15)))


@pytest.fixture
def settings(tmp_path):
    """`settings(center_crop=True, ...)`"""
    return lambda **changes: DataSettings(**{"resolution": 64, "cache_dir": str(tmp_path)} | changes)


def _dataset(images: list[PILImage.Image], **columns: list) -> Dataset:
    defaults = {"prompt": [f"thing {row % 3}" for row in range(len(images))]}
    defaults["advantage"] = [float(row) - 1.5 for row in range(len(images))]
    return Dataset.from_dict({"image": images, **defaults, **columns}).cast_column("image", Image())


def test_latents_are_the_scaled_posterior(components, settings, make_images):
    images = make_images(3)
    data = prepare_training_data(_dataset(images), SD15, components, settings(random_flip=True), CRAFT())
    assert data.latents.shape == data.latent_stds.shape == (2, 3, 4, 8, 8)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        for view, latents in zip((pixels, pixels.flip(3)), data.latents, strict=True):
            posterior = components.vae.encode(view).latent_dist
            torch.testing.assert_close(latents, posterior.mean * 0.18215)
    assert data.weights.tolist() == [-1.5, -0.5, 0.5]


def test_captions_that_the_encoder_cuts_are_said_once(components, settings, make_images, caplog):
    prompts = ["a dog", "a caption that is too long", "a dog"]
    prepare_training_data(_dataset(make_images(3), prompt=prompts), SD15, components, settings())
    words = "1 of 2 captions are longer than the 16 tokens that the text encoder reads: the rest is ignored"
    assert caplog.messages == [words]


def test_enlarged_images_are_said(components, settings, make_images, caplog):
    images = make_images(3)
    prepare_training_data(_dataset(images), SD15, components, settings())
    assert not caplog.records
    images[1] = images[1].resize((80, 40))
    prepare_training_data(_dataset(images), SD15, components, settings())
    words = "--resolution 64: 1 of 3 images are smaller (40 pixels and more) and were enlarged"
    assert [record.getMessage() for record in caplog.records] == [words]


def test_every_caption_is_encoded_once_and_the_empty_one_is_last(components, settings, make_images):
    data = prepare_training_data(_dataset(make_images(5)), SD15, components, settings())
    expected = SD15.encode_prompts(components, ["thing 0", "thing 1", "thing 2", ""])["encoder_hidden_states"]
    torch.testing.assert_close(data.prompts["encoder_hidden_states"], expected)
    assert data.prompt_rows.tolist() == [0, 1, 2, 0, 1]


def test_training_conditions_on_the_original_prompt(components, settings, make_images):
    images = make_images(2)
    dataset = _dataset(images, prompt=["a", "b"], refined_prompt=["a, sharp", "b, vivid"])
    data = prepare_training_data(dataset, SD15, components, settings())
    expected = SD15.encode_prompts(components, ["a", "b"])["encoder_hidden_states"]
    torch.testing.assert_close(data.prompts["encoder_hidden_states"][data.prompt_rows], expected)


def test_cache_is_used_for_the_same_data_and_only_for_it(components, settings, make_images, monkeypatch, tmp_path):
    encodings = []
    encode = components.vae.encode
    monkeypatch.setattr(components.vae, "encode", lambda pixels: encodings.append(len(pixels)) or encode(pixels))
    images = make_images(4)

    def prepare(objective=None, images: list = images, columns: dict | None = None, **changes) -> bool:
        """Whether this call had to encode."""
        before = len(encodings)
        prepare.data = prepare_training_data(
            _dataset(images, **columns or {}), SD15, components, settings(**changes), objective
        )
        return len(encodings) > before

    assert prepare()
    first = prepare.data
    assert not prepare(SFT(), columns={"advantage": [9.0] * 4}, seed=7)
    assert torch.equal(first.latents, prepare.data.latents) and torch.equal(
        first.latent_stds, prepare.data.latent_stds
    )
    assert prepare(random_flip=True)
    assert prepare(center_crop=True)
    assert prepare(resolution=32)
    assert prepare(columns={"prompt": ["other"] * 4})
    assert prepare(images=make_images(4, seed=1))
    assert prepare(images=images[::-1])
    assert list((tmp_path / "diffusers_craft").glob("*.safetensors"))  # --cache_dir
    with torch.no_grad():
        components.vae.encoder.conv_in.weight += 1e-3
    assert prepare()


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(place: float) -> Callable[[bytes], bytes]:
    """The byte at that part of the file; the header comes first."""

    def flip(data: bytes) -> bytes:
        index = int(place * len(data))
        return data[:index] + bytes([data[index] ^ 64]) + data[index + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"junk" * 9, _cut, *map(_flip, (0, 0.01, 0.5, 0.7, 0.99))]
)
def test_a_broken_cache_is_made_anew_with_one_line(components, settings, make_images, tmp_path, caplog, damage):
    dataset = _dataset(make_images(4))
    first = prepare_training_data(dataset, SD15, components, settings())
    (path,) = (tmp_path / "diffusers_craft").iterdir()
    data = path.read_bytes()
    path.write_bytes(damage(data))
    again = prepare_training_data(dataset, SD15, components, settings())
    assert torch.equal(first.latents, again.latents) and torch.equal(first.latent_stds, again.latent_stds)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(f"--cache_dir: expected whole encodings in {path}, found ") and "\n" not in line
    assert line.endswith("; they are made anew")
    assert path.read_bytes() == data
    prepare_training_data(dataset, SD15, components, settings())
    assert len(caplog.records) == 1


def test_a_cache_without_a_hash_is_used(components, settings, make_images, tmp_path, monkeypatch, caplog):
    """As earlier versions wrote it."""
    dataset = _dataset(make_images(4))
    first = prepare_training_data(dataset, SD15, components, settings())
    (path,) = (tmp_path / "diffusers_craft").iterdir()
    save_file(load_file(path), path)
    monkeypatch.setattr(components.vae, "encode", lambda pixels: pytest.fail("encoded"))
    assert torch.equal(first.latents, prepare_training_data(dataset, SD15, components, settings()).latents)
    assert not caplog.records


def test_a_full_disk_of_the_cache_is_one_line(components, settings, make_images, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^disk full: expected .* free for \w+.safetensors, found .* in "):
        prepare_training_data(_dataset(make_images(4)), SD15, components, settings())
    assert not list(tmp_path.rglob("*.tmp"))


def test_crops_and_sizes_come_from_the_cache_together(random_sdxl, settings, make_images):
    """The cached crop is the one that its latents show: an image that is brighter to the right tells where it was cut."""
    components = SDXL.load(ModelSource(str(random_sdxl)))
    ramp = np.zeros((64, 256, 3), dtype=np.uint8) + np.arange(256, dtype=np.uint8)[None, :, None]
    dataset = _dataset([PILImage.fromarray(ramp)] * 6)
    first = prepare_training_data(dataset, SDXL, components, settings())
    again = prepare_training_data(dataset, SDXL, components, settings(seed=3))
    lefts = first.sizes["time_ids"][:, 3].int().tolist()
    assert len(set(lefts)) > 3 and torch.equal(first.sizes["time_ids"], again.sizes["time_ids"])
    for row, left in enumerate(lefts):
        pixels = torch.from_numpy(ramp[:, left : left + 64]).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            mean = components.vae.encode(pixels).latent_dist.mean[0] * components.vae.config.scaling_factor
        torch.testing.assert_close(again.latents[0, row], mean)


def test_sizes_are_true_and_float32(random_sdxl, settings, make_images):
    components = SDXL.load(ModelSource(str(random_sdxl)))
    images = [make_images(1)[0].resize((128, 96)), make_images(1)[0].resize((64, 200))]
    data = prepare_training_data(_dataset(images), SDXL, components, settings(center_crop=True))
    assert data.sizes["time_ids"].dtype == torch.float32
    # 128x96 (w, h) scales to 85x64: left = 21 // 2; 64x200 stays: top = 136 // 2
    assert data.sizes["time_ids"].tolist() == [[96, 128, 0, 10, 64, 64], [200, 64, 68, 0, 64, 64]]


def test_crops_lie_inside_the_image_and_vary_with_the_seed():
    width, height = 120, 90
    gradient = np.zeros((height, width, 3), dtype=np.uint8)
    gradient[..., 0] = np.arange(width)
    gradient[..., 1] = np.arange(height)[:, None]
    corners = set()
    for seed in range(50):
        pixels, original, (top, left) = crop_image(PILImage.fromarray(gradient), 90, False, seed * 7919)
        assert pixels.shape == (90, 90, 3) and original == (90, 120)
        assert pixels[0, 0].tolist() == [left, top, 0]
        corners.add((top, left))
    assert {top for top, _ in corners} == {0} and len(corners) > 15
    assert crop_image(PILImage.new("L", (30, 60)), 64, True, 0)[0].shape == (64, 64, 3)


def test_generated_latents_are_taken_as_they_are(components, settings, make_images):
    latents = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype(np.float16)
    dataset = _dataset(make_images(3), latent=list(latents), latent_vae=[vae_fingerprint(components.vae)] * 3)
    data = prepare_training_data(dataset, SD15, components, settings(use_generated_latents=True))
    assert data.latent_stds is None
    np.testing.assert_array_equal(data.latents[0].numpy(), latents.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected shape \(4, 4, 4\) at --resolution 32, found \(4, 8, 8\) in row 0"):
        prepare_training_data(dataset, SD15, components, settings(use_generated_latents=True, resolution=32))


def test_generated_latents_of_another_vae_are_refused(components, settings, make_images):
    """Also where the cache holds them from a training of the right model."""
    latents = list(np.zeros((3, 4, 8, 8), np.float16))
    own = vae_fingerprint(components.vae)
    dataset = _dataset(make_images(3), latent=latents, latent_vae=[own] * 3)
    prepare_training_data(dataset, SD15, components, settings(use_generated_latents=True))
    components.vae.register_to_config(scaling_factor=0.13025)
    words = (
        rf"--use_generated_latents: expected latents of this model's VAE \(scaling_factor=0.13025 .*\), found {own}$"
    )
    with pytest.raises(ValueError, match=words):
        prepare_training_data(dataset, SD15, components, settings(use_generated_latents=True))
    mixed = _dataset(make_images(3), latent=latents, latent_vae=[vae_fingerprint(components.vae), None, own])
    with pytest.raises(ValueError, match="expected latents of this model's VAE"):
        prepare_training_data(mixed, SD15, components, settings(use_generated_latents=True))


def test_latents_of_unknown_origin_are_compared_with_encoded_images(components, settings, make_images, caplog):
    images = make_images(6)
    encoded = prepare_training_data(_dataset(images), SD15, components, settings(center_crop=True)).latents[0].numpy()
    rng = np.random.default_rng(0)
    size = np.sqrt(np.square(encoded).mean())

    def prepare(latents: np.ndarray, dataset: Dataset | None = None) -> bool:
        dataset = _dataset(images, latent=list(latents)) if dataset is None else dataset
        return prepare_training_data(dataset, SD15, components, settings(use_generated_latents=True)) is not None

    assert prepare(encoded + 0.5 * size * rng.normal(size=encoded.shape))  # more than any pipeline was seen to differ
    for foreign in (-encoded, 5 * encoded, size * rng.normal(size=encoded.shape), np.zeros_like(encoded)):
        with pytest.raises(
            ValueError, match="which encoding the images gives within 0.7 of their size, found .* in the"
        ):
            prepare(foreign)
    assert not caplog.records
    assert prepare(-encoded, _dataset(images, latent=list(-encoded)).remove_columns("image"))
    assert "no column 'latent_vae' and no images, the VAE is taken on trust" in caplog.text


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda data: None, r"row 2, found None$"),
        (lambda data: {"bytes": b"<html>", "path": None}, r"row 2, found one that .* \(UnidentifiedImageError: .*\)$"),
        (
            lambda data: {"bytes": data[:-100], "path": "cat.png"},
            r"row 2 \(cat.png\), found one that .* \(OSError: .*\)$",
        ),
    ],
)
def test_a_broken_image_is_named(components, settings, make_images, broken, words):
    encoded = [encode_png(image) for image in make_images(3)]
    dataset = _dataset([*({"bytes": data, "path": None} for data in encoded[:2]), broken(encoded[2])])
    with pytest.raises(ValueError, match=rf"^--image_column: expected a picture in column 'image', {words}"):
        prepare_training_data(dataset, SD15, components, settings())


def test_a_broken_file_of_an_image_folder_is_named(components, settings, make_images, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip("abc", make_images(3), strict=True):
        image.save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"damaged")
    lines = [json.dumps({"file_name": f"{name}.png", "prompt": "thing"}) for name in "abc"]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    dataset = load_craft_dataset(folder)
    with pytest.raises(ValueError, match=r"row 1 \(.*b\.png\), found one that cannot be read"):
        prepare_training_data(dataset, SD15, components, settings())


def test_a_column_of_texts_is_no_column_of_pictures(components, settings, make_images):
    with pytest.raises(ValueError, match="expected a picture in column 'prompt', row 0, found 'thing 0'"):
        prepare_training_data(_dataset(make_images(2)), SD15, components, settings(image_column="prompt"))


def test_weights(components, settings, make_images, caplog):
    dataset = _dataset(make_images(3))

    def weights(objective: Objective | None, dataset: Dataset = dataset) -> list[float]:
        return prepare_training_data(dataset, SD15, components, settings(), objective).weights.tolist()

    assert weights(CRAFT()) == weights(Objective()) == [-1.5, -0.5, 0.5]
    assert weights(CRAFT(advantage_clip_min=-1)) == [-1.0, -0.5, 0.5]
    assert weights(SFT()) == weights(None) == [1.0, 1.0, 1.0]
    assert not caplog.records
    assert weights(CRAFT(), dataset.remove_columns("advantage")) == [1.0, 1.0, 1.0]
    assert "no column 'advantage': training as SFT" in caplog.text


def test_max_train_samples_keeps_rows_together(components, settings, make_images):
    dataset = _dataset(make_images(6), prompt=[f"thing {row}" for row in range(6)])
    data = prepare_training_data(dataset, SD15, components, settings(max_train_samples=2), CRAFT())
    assert len(data) == len(data.weights) == 2
    rows = [int(advantage + 1.5) for advantage in data.weights.tolist()]
    expected = SD15.encode_prompts(components, [f"thing {row}" for row in rows])["encoder_hidden_states"]
    torch.testing.assert_close(data.prompts["encoder_hidden_states"][data.prompt_rows], expected)


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"caption_column": "text"}, {}, r"--caption_column: expected one of the dataset's columns \(image, prompt,"),
        ({"image_column": "picture"}, {}, "--image_column: expected .* found 'picture'"),
        ({"use_generated_latents": True}, {}, "--latent_column: expected .* found 'latent'"),
        ({}, {"prompt": ["a", None]}, "--caption_column: expected text in column 'prompt', found None in row 1"),
        ({}, {"advantage": [1.0, float("nan")]}, "--advantage_column: expected finite numbers, found nan in row 1"),
        ({}, {"advantage": ["high", "1"]}, "--advantage_column: expected finite numbers, found 'high' in row 0"),
        ({}, {"advantage": [1.0, None]}, "--advantage_column: expected finite numbers, found None in row 1"),
        ({}, {"advantage": [0.0, 0.0]}, "--advantage_column: expected a row that is not 0, found 2 zeros"),
        ({"resolution": 60}, {}, "--resolution: expected a multiple of 8 for this VAE, found 60"),
    ],
)
def test_errors_name_flag_and_row(components, settings, make_images, changes, columns, message):
    with pytest.raises(ValueError, match=message):
        prepare_training_data(_dataset(make_images(2), **columns), SD15, components, settings(**changes), CRAFT())


def test_captions_without_words_are_counted(components, settings, make_images, caplog):
    with caplog.at_level(logging.WARNING):
        prepare_training_data(_dataset(make_images(3), prompt=["a", "", "  "]), SD15, components, settings(), CRAFT())
    assert "--caption_column: 2 of 3 captions are empty" in caplog.text


def test_an_empty_dataset_is_refused(components, settings):
    features = Features({"image": Image(), "prompt": Value("string"), "advantage": Value("float32")})
    empty = Dataset.from_dict({"image": [], "prompt": [], "advantage": []}, features=features)
    with pytest.raises(ValueError, match="--dataset_name: expected at least one row, found none"):
        prepare_training_data(empty, SD15, components, settings())
