# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`compare_craft.py`: one table of several folders, one line for what does not compare."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from test_evaluation_compare import results


SCRIPT = Path(__file__).parents[1] / "examples" / "craft" / "compare_craft.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, found in {"a": results("craft", 0.3), "b": results("spo", 0.28, guidance_scale=7.5)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--output_dir", "out"])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return _run


def test_refuses_other_settings_in_one_line_and_merges_them_when_told(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("a", "b/results.json")
    assert exit_info.value.code == 2 and not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "guidance_scale (5.0 in a, 7.5 in b)" in line
    run("a", "b/results.json", "--allow", "guidance_scale")
    printed = capsys.readouterr().out
    assert "**30** |" in printed and "| spo " in printed
    assert "- Not comparable, guidance_scale differs: 5.0 in a, 7.5 in b" in printed
    assert (tmp_path / "out" / "comparison.md").read_text() + "\n" == printed


@pytest.mark.parametrize("here", [".", "results.json", "../a"])
def test_the_current_folder_has_a_name(run, tmp_path, monkeypatch, capsys, here):
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(SystemExit):
        run(here, "../b")
    assert "guidance_scale (5.0 in a, 7.5 in b)" in capsys.readouterr().err


@pytest.mark.parametrize("nameless", ["/", "x="])
def test_what_has_no_name_is_refused(run, capsys, nameless):
    with pytest.raises(SystemExit):
        run(nameless, "a")
    assert f"results: expected PATH or NAME=PATH, found '{nameless}'" in capsys.readouterr().err


def test_files_of_papers_are_named_after_themselves(run, tmp_path, capsys):
    (tmp_path / "papers").mkdir()
    for file, scale in (("spo", 5.0), ("dpo v1.5", 7.5)):
        (tmp_path / "papers" / f"{file}.json").write_text(json.dumps(results(file, 0.3, guidance_scale=scale)))
    with pytest.raises(SystemExit):
        run("papers/spo.json", "papers/dpo v1.5.json")
    assert "guidance_scale (5.0 in spo, 7.5 in dpo v1.5)" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("a", "a/results.json")
    assert "found 'a' twice; write NAME=PATH" in capsys.readouterr().err
    run("x=a", "a/results.json")
