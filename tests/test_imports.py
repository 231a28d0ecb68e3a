# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The import rule: a folder imports from lower floors only, the examples public names only."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusers_craft
from diffusers_craft import scripts


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diffusers_craft"

# Floor by floor, from the ground. A folder imports from lower floors, and never from a neighbour on its own.
FLOORS = (
    ("core", "selection", "objectives", "figures", "tiny"),
    ("models", "prompts", "rewards"),
    ("data", "scoring", "hub"),
    ("build", "training", "evaluation"),
    ("rounds",),  # what composes them
)
FLOOR_OF = {folder: number for number, folders in enumerate(FLOORS, start=1) for folder in folders}
# What a user imports to filter scores or read prompts stays light.
LIGHT = ("diffusers_craft", "diffusers_craft.prompts.sets", "diffusers_craft.core.script")
LIGHT += ("diffusers_craft.core.workdir", "diffusers_craft.selection.filtering")
HEAVY = ("torch", "diffusers", "transformers", "datasets", "matplotlib", "accelerate", "openai", "PIL")

SOURCES = sorted(PACKAGE.rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def imported(path: Path, package: Path = PACKAGE) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every import of a file, inside functions too: (absolute module, names taken from it)."""
    relative = path.relative_to(package.parent).with_suffix("") if path.is_relative_to(package.parent) else Path("x")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the folder of the file, each further one its parent.
            base = ".".join(relative.parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module, tuple(alias.name for alias in node.names)


def floors_imported(path: Path, package: Path = PACKAGE) -> Iterator[tuple[str, int]]:
    """The folders of the package that a file imports from, but for its own, and their floors; the root is floor 0."""
    own = path.relative_to(package).parts[0] if path.parent != package else ""
    for module, names in imported(path, package):
        if module == "diffusers_craft":
            parts = set(names)
        elif module.startswith("diffusers_craft."):
            parts = {module.split(".")[1]}
        else:
            continue
        for folder in {part if (package / part).is_dir() else "" for part in parts} - {own}:
            yield folder, FLOOR_OF[folder] if folder else 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_from_lower_floors_only(path):
    floor = 0 if path.parent == PACKAGE else FLOOR_OF[path.relative_to(PACKAGE).parts[0]]
    for folder, other in floors_imported(path):
        assert other < floor, f"{path.relative_to(PACKAGE)} of floor {floor} imports {folder} of floor {other}"


def test_the_rule_sees_violations(tmp_path):
    """Relative, absolute and late imports are all found; a neighbour is none of the lower floors."""
    package = tmp_path / "diffusers_craft"
    for folder in ("rewards", "scoring", "models", "training"):
        (package / folder).mkdir(parents=True)
    file = package / "rewards" / "new.py"
    file.write_text(
        "from ..scoring.run import a\nfrom .base import b\nfrom .. import models\nimport numpy as np\n"
        "from .. import __version__\ndef f():\n    from diffusers_craft.training.data import c\n"
    )
    assert set(floors_imported(file, package)) == {("scoring", 3), ("models", 2), ("", 0), ("training", 4)}


@pytest.mark.parametrize(("folder", "library"), [("selection", "numpy"), ("objectives", "torch")])
def test_pure_modules(folder, library):
    """Arrays or tensors in, arrays or tensors out: no diffusers, no accelerate, no files."""
    allowed = {"collections", "dataclasses", "math", "typing", "diffusers_craft", library}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        assert {module.split(".")[0] for module, _ in imported(path)} <= allowed, path
        assert not re.search(r"\bopen\(|\bPath\b", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_only_the_families_know_the_architectures():
    words = re.compile(r"time_ids|pooled|(?<!tiny-)sdxl")
    for path in SOURCES:
        if path.parent.name not in ("models", "tiny"):
            found = words.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} mentions {found[0]!r}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_import_public_names_only(path):
    """A script is copied alone; benchmarks stay together."""
    siblings = {file.stem for file in path.parent.glob("*.py")} if "examples" in path.parts else set()
    for module, names in imported(path):
        assert not module.startswith("diffusers_craft.") or module == "diffusers_craft.scripts", (
            f"{path.name}: {module}"
        )
        assert module.split(".")[0] not in siblings, f"{path.name} imports the sibling file {module}"
        if module in ("diffusers_craft", "diffusers_craft.scripts"):
            public = diffusers_craft if module == "diffusers_craft" else scripts
            assert set(names) <= set(public.__all__), f"{path.name}: {names}"
