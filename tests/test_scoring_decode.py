# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Decoding processes: the same pictures as without them, in order, and no process that hangs or stays behind."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diffusers_craft.scoring import decode as scoring_decode
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
    assert found[3].size == (30, 20), "the process went on"


def test_workers_import_nothing_heavy():
    code = "import sys, diffusers_craft.scoring.decode as d; print(*sorted(sys.modules))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "transformers", "tqdm"} & set(names)


def test_processes_start_late_and_end_with_the_context():
    with ImageDecoder(2) as decoder:
        assert decoder._workers == []
        decoder.submit(pictures())
        processes = [worker.process for worker in decoder._workers]
        assert [process.poll() for process in processes] == [None, None]
    assert [process.poll() for process in processes] == [0, 0]


def test_processes_end_when_the_caller_fails():
    with pytest.raises(KeyboardInterrupt), ImageDecoder(2) as decoder:
        decoder.submit(pictures() * 20)
        processes = [worker.process for worker in decoder._workers]
        raise KeyboardInterrupt
    assert [process.poll() for process in processes] == [0, 0]


def test_a_killed_process_is_an_error_and_no_wait():
    with pytest.raises(RuntimeError, match="an image decoding process ended with exit code -9; out of memory?"):
        with ImageDecoder(1) as decoder:
            decoder.submit(pictures())()
            decoder._workers[0].process.kill()
            decoder.submit(pictures() * 3)()


def test_processes_end_when_their_parent_is_killed():
    code = (
        "import sys, time\nfrom diffusers_craft.scoring.decode import ImageDecoder\n"
        "decoder = ImageDecoder(1)\ndecoder.submit([b''])()\n"
        "print(decoder._workers[0].process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(worker, 0)
            state = open(f"/proc/{worker}/stat").read().split()[2] if os.path.exists("/proc") else "?"
        except OSError:
            return
        if state == "Z":  # ended; nobody has asked for its exit code yet
            return
        time.sleep(0.1)
    raise AssertionError("the worker lives on")


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    """The worker's stdout carries answers; prints go to stderr."""
    code = (
        "import diffusers_craft.scoring.decode as d\nreal = d.decode_image\n"
        "d.decode_image = lambda data: (print('noise'), real(data))[1]\nd.main()\n"
    )
    command = subprocess.Popen
    monkeypatch.setattr(
        scoring_decode.subprocess, "Popen", lambda args, **options: command([args[0], "-c", code], **options)
    )
    with ImageDecoder(1) as decoder:
        (image,) = decoder.submit([pictures()[1]])()
    assert image.size == (30, 20)
