# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Names that are imported when they are first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    module: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a module that hands out the names in this package's modules."""
    module_of = {name: source for source, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", __package__), name)
        vars(sys.modules[module])[name] = value
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *module_of})

    return get, names, sorted(module_of)
