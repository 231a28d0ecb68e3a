# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Decodes images in worker processes, so that a GPU does not wait for PNG and JPEG decompression.

A worker is this module run as a program: it reads encoded images from stdin and answers with pixels on stdout. Nothing
is forked, so no lock of torch, pyarrow or a tokenizer can be inherited in a locked state (the usual way in which worker
processes hang), a worker costs no import of torch, and the user's script needs no `if __name__ == "__main__"`. One thread per
worker asks one question at a time and waits for its answer; when the parent dies, the worker reads the end of its stdin
and ends too. Threads would not do: two of them decode PNG files of 512 pixels no faster than one, half as fast as two
processes.
"""

import io
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError


Decoded = Image.Image | str  # the picture, or why there is none


def decode_image(data: bytes) -> Decoded:
    """The picture in an encoded image of any format, with its own mode and palette, or one line on what is wrong."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.copy()
    except UnidentifiedImageError:
        return "no image of a known format"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        return " ".join(f"{type(error).__name__}: {error}".split())


class ImageDecoder:
    """Decodes lists of images beside the caller's own work; the result does not depend on the number of workers.

    Args:
        num_workers (`int`, *optional*, defaults to 0): worker processes; with 0 the caller decodes when it asks for
            the result. They start with the first images and end with the context.
    """

    def __init__(self, num_workers: int = 0):
        self.num_workers = num_workers
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "ImageDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        for worker in self._workers:
            worker.close()
        self._workers = []

    def submit(self, encoded: Sequence[bytes]) -> Callable[[], list[Decoded]]:
        """Begins to decode n images; calling what is returned waits for them, in order."""
        if not self.num_workers:
            return lambda: [decode_image(data) for data in encoded]
        self._start()
        futures = [self._threads.submit(self._ask_a_worker, data) for data in encoded]
        return lambda: [future.result() for future in futures]

    def _start(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode")
            self._workers = [_Worker() for _ in range(self.num_workers)]
            for worker in self._workers:
                self._idle.put(worker)

    def _ask_a_worker(self, data: bytes) -> Decoded:
        worker = self._idle.get()
        try:
            return worker.decode(data)
        finally:
            self._idle.put(worker)  # a dead one too: whoever takes it fails at once instead of waiting


class _Worker:
    """A decoding process. It finds this package and Pillow where the parent does."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def decode(self, data: bytes) -> Decoded:
        try:
            _send(data, self.process.stdin)
            return pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            code = self.process.wait()
            raise RuntimeError(f"an image decoding process ended with exit code {code}; out of memory?") from None

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:  # it died with unread bytes in the pipe
                pass
        self.process.wait()


def _send(message: bytes | Decoded, pipe: BinaryIO) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def main() -> None:
    """The worker: answers until its stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    while True:
        try:
            data = pickle.load(questions)
        except EOFError:
            return
        _send(decode_image(data), answers)


if __name__ == "__main__":
    main()
