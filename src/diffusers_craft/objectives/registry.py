# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The objectives of this package by name, and the one that a run's record names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .base import Objective
from .craft import CRAFT, SFT
from .dpo import DPO
from .dspo import DSPO
from .inpo import InPO
from .kto import KTO
from .mapo import MaPO
from .sharpening import RLHFSharpening, SFTSharpening
from .smpo import SmPO
from .spo import SPO


_KINDS = (CRAFT, SFT, DPO, DSPO, InPO, KTO, MaPO, RLHFSharpening, SFTSharpening, SmPO, SPO)
OBJECTIVES: dict[str, type[Objective]] = {kind.__name__.lower(): kind for kind in _KINDS}


def find(options: Mapping[str, Any]) -> tuple[str, Objective | None]:
    """The recorded name of a run's objective, and the objective with its options; `None` for one from outside."""
    name = options.get("objective") or options["loss"]
    kind = OBJECTIVES.get(name.lower())
    if kind is None:
        return name, None
    given = {field.name: options[field.name] for field in fields(kind) if options.get(field.name) is not None}
    return name, kind(**given)
