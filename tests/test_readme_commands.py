# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Every command that a README or a page of docs/ shows is understood by its script."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from training_driver import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
SCRIPTS = {path.name: path for path in (ROOT / "examples").rglob("*.py")}


def _lines(page: Path) -> list[list[str]]:
    """The words of each command in the fenced blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _commands() -> list[tuple[str, Path, list[str]]]:
    """Name for the test, script and flags of each command of all pages that runs a script."""
    found = []
    for page in PAGES:
        for words in _lines(page):
            name = next((word for word in words if Path(word).name in SCRIPTS), None)
            if name is not None and "..." not in words:
                about = f"{page.relative_to(ROOT)}-{len(found)}-{Path(name).stem}"
                found.append((about, SCRIPTS[Path(name).name], words[words.index(name) + 1 :]))
    return found


COMMANDS = _commands()


def test_the_readme_begins_with_the_demo_and_the_tests():
    assert _lines(ROOT / "README.md")[:2] == [["make", "demo"], ["make", "test"]]


def test_the_readmes_show_every_script():
    shown = {script.name for _, script, _ in COMMANDS}
    assert shown >= set(SCRIPTS), set(SCRIPTS) - shown


@pytest.mark.parametrize(("script", "flags"), [case[1:] for case in COMMANDS], ids=[case[0] for case in COMMANDS])
def test_a_scripts_flags_are_those_of_the_readme(script, flags, monkeypatch):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script.name, *flags])
    args = module.parse_args()
    for flag in (word.removeprefix("--").split("=")[0] for word in flags if word.startswith("--")):
        assert hasattr(args, flag) or hasattr(args, flag.removeprefix("no-")), flag  # in full, not an abbreviation
