# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Decoding threads: the same pictures as without them, in order, and no thread that stays behind."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from diffusers_craft.scoring.decode import ImageDecoder, decode_image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> list[bytes]:
    """Every mode that a reward's conversion to RGB treats in its own way."""
    colors = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgba = Image.fromarray(colors, "RGBA")
    palette = rgba.convert("RGB").quantize(16)
    deep = Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
    images = [rgba, rgba.convert("RGB"), rgba.convert("L"), rgba.convert("LA"), palette, deep, rgba.convert("1")]
    encoded = [encode(image) for image in images]
    encoded.append(encode(palette, transparency=3))
    encoded.append(encode(rgba.convert("RGB"), "JPEG", comment="a comment"))
    return encoded + [encode(rgba.convert("CMYK"), "JPEG"), encode(rgba, "WEBP", lossless=True)]


def describe(image: Image.Image) -> tuple:
    return (
        image.mode,
        image.size,
        image.tobytes(),
        image.getpalette(),
        image.info.get("transparency"),
        dict(image.info),
    )


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_return_the_same_pictures_in_order(num_workers: int):
    encoded = pictures() * 5
    with ImageDecoder(num_workers) as decoder:
        waits = [decoder.submit(encoded[:20]), decoder.submit([]), decoder.submit(encoded[20:])]
        found = [image for wait in waits for image in wait()]
    assert [describe(image) for image in found] == [describe(decode_image(data)) for data in encoded]
    with ImageDecoder() as decoder:
        here = decoder.submit(encoded)()
    assert [describe(image) for image in here] == [describe(image) for image in found]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_no_image_is_one_line(num_workers: int):
    whole = pictures()[0]
    broken = [b"", b"text", whole[: len(whole) // 2]]
    with ImageDecoder(num_workers) as decoder:
        found = decoder.submit([*broken, whole])()
    assert found[:2] == ["no image of a known format"] * 2
    assert isinstance(found[2], str) and "\n" not in found[2] and "truncated" in found[2]
    assert found[3].size == (30, 20), "the thread went on"


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_threads_start_late_and_end_with_the_context():
    with ImageDecoder(2) as decoder:
        assert decoding_threads() == []
        decoder.submit(pictures())
        assert len(decoding_threads()) == 2
    assert decoding_threads() == []


def test_threads_end_when_the_caller_fails():
    with pytest.raises(KeyboardInterrupt), ImageDecoder(2) as decoder:
        decoder.submit(pictures() * 20)
        raise KeyboardInterrupt
    assert decoding_threads() == []
