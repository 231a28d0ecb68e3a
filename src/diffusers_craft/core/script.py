# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What every command-line script does alike: user errors as one line, the device, what flags mean."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..errors import UserError


PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as flags and as torch call them


def run_script(main: Callable[[Namespace], Any], args: Namespace) -> None:
    """Calls `main(args)`; a `UserError` ends the process with one line on stderr and exit code 2."""
    try:
        main(args)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error  # argparse's own


def default_device() -> str:
    """The device of this process: each rank of `accelerate launch` takes its own GPU; without GPUs the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def torch_dtype(precision: str) -> Any:
    """The `torch.dtype` of one of `PRECISIONS`."""
    import torch

    return getattr(torch, PRECISIONS[precision])


def parse_pairs(flag: str, texts: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Name to value of what a repeatable flag collected, `NAME=VALUE` each; each of the names may be given once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value or name not in names or name in pairs:
            raise UserError(f"{flag}: expected NAME=VALUE, with a NAME of {', '.join(names)} once, found {text!r}")
        pairs[name] = value
    return pairs
