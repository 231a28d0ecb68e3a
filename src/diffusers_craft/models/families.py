# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The families of base models that `--backbone` knows."""

from ..errors import UserError
from .family import Family
from .stable_diffusion import SD15, SDXL


FAMILIES: dict[str, Family] = {"sd15": SD15, "sdxl": SDXL}


def register_family(name: str, family: Family) -> None:
    """Makes a family from outside of this package known under a value of `--backbone`.

    Raises:
        UserError: if an attribute is missing, or another family has the name.
    """
    for attribute in ("name", "pipeline_class", "resolution"):
        if not hasattr(family, attribute):
            raise UserError(f"family {name}: expected the attribute {attribute}, found none")
    if FAMILIES.setdefault(name, family) is not family:
        raise UserError(f"family {name}: expected a name that is free, found that of {FAMILIES[name].name}")
