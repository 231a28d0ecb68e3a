# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Parity with the official code, whose numbers are computed when the tests run.

Every comparison runs twice: on a small model with the quick tests, and at the official size with `make test-slow`, which
takes minutes and up to 12 GB of memory. The packages are installed into a folder of their own on first use.
"""

from pathlib import Path

import pytest
from official_packages import locate_packages


@pytest.fixture(scope="session")
def official_packages() -> Path:
    """Folder with the packages `hpsv2` and `image-reward`."""
    return locate_packages()


@pytest.fixture(scope="module", params=["small", pytest.param("official", marks=pytest.mark.slow)])
def size(request: pytest.FixtureRequest) -> str:
    """Size of the models."""
    return request.param
