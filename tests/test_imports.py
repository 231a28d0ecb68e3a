# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The import rule: layers import strictly downward, a stage never another stage, examples public names only."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusers_craft


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diffusers_craft"

# A module is named by its path below the package, a subpackage by its first part. What is not listed is a stage.
FOUNDATION = {"records", "workdir", "cli", "modifiers"}
LIBRARY = {"rewards", "objectives", "tiny", "backbones", "composite", "grid", "llm", "page", "hub"}
COMPOSITION = {"builder", "alignment"}
# Modules of one layer that may import each other: (importing, imported).
ALLOWED = {
    ("cli", "workdir"),
    ("backbones", "tiny"),
    ("tiny", "rewards"),
    ("rewards", "llm"),
    ("hub", "tiny"),
    ("hub", "backbones"),
    ("hub", "grid"),
}
# Scripts that rebuild the embedded weights run everything below the stages.
REBUILD = re.compile(r"tiny/rebuild_\w+\.py")
# Layer 0 and what a user imports to filter scores or read prompts stay light.
LIGHT = ("diffusers_craft", *(f"diffusers_craft.{name}" for name in (*sorted(FOUNDATION), "composite", "filtering")))
LIGHT += ("diffusers_craft.prompts",)
HEAVY = ("torch", "diffusers", "transformers", "datasets", "matplotlib", "accelerate", "openai", "PIL")

SOURCES = sorted(PACKAGE.rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def unit(module: str) -> str:
    """`rewards.hps` -> `rewards`; the helper modules of a stage (`training_data`) are parts of it (`training`)."""
    first = module.split(".")[0]
    return first if first in FOUNDATION | LIBRARY | COMPOSITION else first.split("_")[0]


def layer(name: str) -> int:
    return 0 if name in FOUNDATION else 1 if name in LIBRARY else 3 if name in COMPOSITION else 2


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


def own_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, without the package's name."""
    modules = set()
    for module, names in imported(path):
        if module == "diffusers_craft":
            modules |= {name for name in names if name != "__version__"}
        elif module.startswith("diffusers_craft."):
            modules.add(module.removeprefix("diffusers_craft."))
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_import_downward(path):
    relative = path.relative_to(PACKAGE).as_posix()
    if relative == "__init__.py":
        assert not own_modules(path)
        return
    importer = unit(relative.removesuffix(".py").replace("/", "."))
    for module in own_modules(path):
        target = unit(module)
        if target == importer or (importer, target) in ALLOWED:
            continue
        if REBUILD.fullmatch(relative):
            assert layer(target) < 2, f"{relative} imports {module}"
            continue
        assert layer(target) < layer(importer), f"{relative} imports {module}: not a lower layer"


def test_foundation_imports_nothing_of_ours():
    assert own_modules(PACKAGE / "records.py") == own_modules(PACKAGE / "workdir.py") == set()


@pytest.mark.parametrize(
    ("files", "library"),
    [
        ([PACKAGE / "filtering.py", PACKAGE / "composite.py"], "numpy"),
        (sorted((PACKAGE / "objectives").glob("*.py")), "torch"),
    ],
    ids=["filtering", "objectives"],
)
def test_pure_modules(files, library):
    """Arrays or tensors in, arrays or tensors out: no diffusers, no accelerate, no files."""
    allowed = {"collections", "dataclasses", "math", "typing", "diffusers_craft", library}
    for path in files:
        assert {module.split(".")[0] for module, _ in imported(path)} <= allowed, path
        assert not re.search(r"\bopen\(|\bPath\b", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_only_backbones_knows_the_architectures():
    words = re.compile(r"time_ids|pooled|(?<!tiny-)sdxl")
    for path in SOURCES:
        if path.name != "backbones.py" and "tiny" not in path.parts:
            found = words.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} mentions {found[0]!r}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_import_public_names_only(path):
    """A script is copied alone; benchmarks stay together."""
    siblings = {file.stem for file in path.parent.glob("*.py")} if "examples" in path.parts else set()
    for module, names in imported(path):
        assert not module.startswith("diffusers_craft."), f"{path.name} imports {module}"
        assert module.split(".")[0] not in siblings, f"{path.name} imports the sibling file {module}"
        if module == "diffusers_craft":
            assert set(names) <= set(diffusers_craft.__all__), f"{path.name}: {names}"


def test_the_rule_sees_violations(tmp_path):
    """Relative, absolute and late imports are all found, with the right target."""
    package = tmp_path / "diffusers_craft"
    (package / "rewards").mkdir(parents=True)
    file = package / "rewards" / "new.py"
    file.write_text(
        "from ..scoring import a\nfrom .base import b\nfrom .. import filtering\nimport numpy as np\n"
        "def f():\n    from diffusers_craft.training_data import c\n"
    )
    found = {(module, *names) for module, names in imported(file, package)}
    assert found == {
        ("diffusers_craft.scoring", "a"),
        ("diffusers_craft.rewards.base", "b"),
        ("diffusers_craft", "filtering"),
        ("numpy",),
        ("diffusers_craft.training_data", "c"),
    }
    assert unit("training_data") == "training" and layer("training") == 2
    assert unit("rewards.hps") == "rewards" and layer("rewards") == 1
