# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Decodes images in threads, so that a GPU does not wait for PNG and JPEG decompression.

Pillow lets go of the interpreter while it decompresses, so threads suffice; processes would have to send the pixels back.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

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
        num_workers (`int`, *optional*, defaults to 0): threads; with 0 the caller decodes when it asks for the result.
            They start with the first images and end with the context.
    """

    def __init__(self, num_workers: int = 0):
        self.num_workers = num_workers
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode") if num_workers else None

    def __enter__(self) -> "ImageDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def submit(self, encoded: Sequence[bytes]) -> Callable[[], list[Decoded]]:
        """Begins to decode n images; calling what is returned waits for them, in order."""
        if self._threads is None:
            return lambda: [decode_image(data) for data in encoded]
        futures = [self._threads.submit(decode_image, data) for data in encoded]
        return lambda: [future.result() for future in futures]
