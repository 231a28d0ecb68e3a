# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Which of the libraries' progress bars are shown."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def one_bar() -> Iterator[None]:
    """Leaves out the bars of transformers, which stand inside others; bars of loading are shown once per machine."""
    is_first = not int(os.environ.get("LOCAL_RANK", 0))
    if not is_first:
        diffusers_logging.disable_progress_bar()
    shown, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # those of downloads too
    if downloads and is_first:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        (enable_progress_bars if downloads else disable_progress_bars)()
