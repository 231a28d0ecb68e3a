#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prints the oldest supported version of every dependency, `name==version` a line, as pip reads constraints.

The lower bounds of `_deps` in setup.py are the only source; `make test-compat` installs them and runs the quick tests.
"""

import ast
import re
from pathlib import Path


SETUP = Path(__file__).parents[1] / "setup.py"
# What the oldest versions need, and do not say: datasets 4.0 reads no metadata.csv by pandas 3.
OF_OTHERS = ("pandas<3",)
DEVELOPMENT = ("pytest", "ruff")  # tools: their age shows nothing about the package


def lower_bounds(setup: Path = SETUP) -> dict[str, str]:
    """Package to lower bound, from the literal list `_deps`; running setup.py would need its build tools."""
    for node in ast.parse(setup.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_deps":
            return dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)", dep).groups() for dep in ast.literal_eval(node.value))
    raise SystemExit(f"{setup}: expected a list _deps, found none")


def main() -> None:
    for name, version in lower_bounds().items():
        if name not in DEVELOPMENT:
            print(f"{name}=={version}")
    print("\n".join(OF_OTHERS))


if __name__ == "__main__":
    main()
