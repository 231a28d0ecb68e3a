# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The objectives of this package by name, and what a run's record says about the one that it trained with."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from .base import Objective
from .dpo import DPO
from .dspo import DSPO
from .inpo import InPO
from .kto import KTO
from .mapo import MaPO
from .sharpening import RLHFSharpening, SFTSharpening
from .smpo import SmPO
from .spo import SPO


_KINDS = (DPO, DSPO, InPO, KTO, MaPO, RLHFSharpening, SFTSharpening, SmPO, SPO)
OBJECTIVES: dict[str, type[Objective]] = {kind.__name__.lower(): kind for kind in _KINDS}


class About(NamedTuple):
    """`title`, `paper` and `unit` of an `Objective`."""

    title: str
    paper: str = ""
    unit: str = "single"


# The losses of CRAFT's own recipe (`--loss`).
_RECIPES = {"craft": About("CRAFT", "2603.18991"), "sft": About("supervised fine-tuning")}


def find(options: Mapping[str, Any]) -> tuple[str, About | None]:
    """The recorded name of a run's objective, and what it is; `None` for one that is not of this package.

    Args:
        options (`Mapping`): the recorded options: `objective` (a class name, in any case) or `loss`, and its own, on
            which its unit may depend.
    """
    name = options.get("objective") or options["loss"]
    kind = OBJECTIVES.get(name.lower())
    if kind is None:
        return name, _RECIPES.get(name)
    own = {field.name: options[field.name] for field in fields(kind) if options.get(field.name) is not None}
    return name, About(kind.title, kind.paper, kind(**own).unit)
