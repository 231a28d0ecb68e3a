# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Decoding threads: the same pictures as without them, in order, and no thread that stays behind."""

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_craft import score_images
from diffusers_craft.scoring import run as scoring_run
from diffusers_craft.scoring.run import ImageRow, decode_image
from diffusers_craft.scripts import ScoringJob, WorkDir


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


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


class Encoded:
    """An image source of encoded images; notes how many threads there are before each reading."""

    def __init__(self, encoded: list[bytes | None]):
        self.encoded, self.num_rows, self.threads = encoded, len(encoded), []

    def read_rows(self, rows: range) -> list[ImageRow]:
        self.threads.append(len(decoding_threads()))
        return [ImageRow(f"row {row}", "p", self.encoded[row]) for row in rows]


class Seen:
    """A reward that keeps what it is shown, and how many threads there were."""

    def __init__(self, fails: bool = False):
        self.fails, self.images, self.threads = fails, [], []

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        self.images += images
        self.threads.append(len(decoding_threads()))
        if self.fails:
            raise KeyboardInterrupt
        return np.zeros(len(images))


def score(source: Encoded, reward: Seen, folder: Path, num_workers: int, rows_per_shard: int = 20) -> np.ndarray:
    stage = WorkDir(folder).stage("seen", {}, source.num_rows, rows_per_shard)
    score_images([ScoringJob(source, {"seen": stage})], {"seen": reward}, "sequential", num_workers, True)
    return stage.read()["score"].to_numpy()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_workers_return_the_same_pictures_in_order(num_workers: int, tmp_path: Path):
    encoded, reward = pictures() * 5, Seen()
    score(Encoded([*encoded[:20], *[None] * 20, *encoded[20:]]), reward, tmp_path, num_workers)
    assert [describe(image) for image in reward.images] == [describe(decode_image(data)) for data in encoded]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_no_image_is_one_line(num_workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole, reward = pictures()[0], Seen()
    broken = [b"", b"text", whole[: len(whole) // 2]]
    found = score(Encoded([*broken, whole]), reward, tmp_path, num_workers)
    reasons = [message.partition("gets no score ")[2] for message in caplog.messages]
    assert reasons[:2] == ["(no image of a known format)"] * 2
    assert len(reasons) == 3 and "\n" not in reasons[2] and "truncated" in reasons[2]
    assert reward.images[0].size == (30, 20) and np.isnan(found).tolist() == [True] * 3 + [False], "the thread went on"


def test_threads_start_late_and_end_with_the_last_image(tmp_path: Path):
    """The next shard is read, and its decoding begun, before this one is scored."""
    source, reward = Encoded(pictures() * 3), Seen()
    score(source, reward, tmp_path, 2, 11)
    assert source.threads == [0, 2, 2] and reward.threads == [2, 2, 2]
    assert decoding_threads() == []


def test_threads_end_when_the_reward_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is queued is not decoded any more: of 40 images that were begun, the 20 of the second shard."""
    decoded = []

    def slow(data: bytes) -> Image.Image | str:
        time.sleep(0.02)
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr(scoring_run, "decode_image", slow)
    with pytest.raises(KeyboardInterrupt):
        score(Encoded(pictures() * 20), Seen(fails=True), tmp_path, 2)
    assert decoding_threads() == [] and len(decoded) < 35
