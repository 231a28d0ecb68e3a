# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Scripts: user errors become one line and exit code 2, defects keep their traceback, runs are recorded."""

import json
import random
from argparse import Namespace
from pathlib import Path

import pytest

from diffusers_craft import GenerationSettings, UserError, __version__
from diffusers_craft.core.run_record import local_paths, versions
from diffusers_craft.scripts import PRECISIONS, recorded_option, run_script, torch_dtype, write_run_json


def test_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda args: GenerationSettings(num_inference_steps=args.steps), Namespace(steps=0))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --num_inference_steps: expected at least 1, found 0\n"


def test_line_breaks_of_a_user_error_are_removed(capsys: pytest.CaptureFixture) -> None:
    def main(args):
        raise UserError("--prompts: expected\n  text")

    with pytest.raises(SystemExit):
        run_script(main, Namespace())
    assert capsys.readouterr().err == "error: --prompts: expected text\n"


@pytest.mark.parametrize(
    "defect", [lambda args: random.Random().sample([1], 2), lambda args: int("x")], ids=["library", "own"]
)
def test_a_defect_keeps_its_traceback(defect) -> None:
    with pytest.raises(ValueError):
        run_script(defect, Namespace())


def test_precisions_are_torch_s() -> None:
    assert [str(torch_dtype(name)) for name in PRECISIONS] == ["torch.float32", "torch.float16", "torch.bfloat16"]


def test_success_returns() -> None:
    seen = []
    run_script(seen.append, Namespace(seed=3))
    assert seen == [Namespace(seed=3)]


def test_run_json_holds_options_seed_versions_and_no_secret(tmp_path: Path) -> None:
    options = Namespace(seed=7, rewards=["pickscore=1"], hub_token="hf_secret", output_dir=tmp_path, device=None)
    write_run_json(tmp_path / "run" / "craft_run.json", options, loss_history=[0.5])
    text = (tmp_path / "run" / "craft_run.json").read_text()
    content = json.loads(text)
    assert content["options"] == {
        "seed": 7,
        "rewards": ["pickscore=1"],
        "output_dir": str(tmp_path),
        "device": None,
    }
    assert content["seed"] == 7 and content["loss_history"] == [0.5] and "hf_secret" not in text
    assert content["versions"] == versions()
    assert content["versions"]["diffusers_craft"] == __version__ and content["versions"]["torch"]


def test_a_record_tells_paths_from_hub_ids_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"model": "models/mine", "data": "org/data", "rewards": ["a=models", "b=org/b"], "output_dir": "new/x"}
    options |= {"prompt": "a thing " * 100, "none": None, "empty": ""}
    write_run_json("run.json", options, source={"checkpoint": "./models"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    record = json.loads((tmp_path / "run.json").read_text())
    texts = {"models/mine": "models/mine", "models": "models", "new/x": "new/x", "./models": "models"}
    assert record["paths"] == {text: str(tmp_path / place) for text, place in texts.items()}
    assert recorded_option(record, "model") == str(tmp_path / "models" / "mine")
    assert recorded_option(record, "data") == "org/data" and recorded_option(record, "none") is None
    assert recorded_option({"options": options}, "model") == "models/mine", "a record of an older version"
    assert local_paths(options) == {"new/x": str(tmp_path / "elsewhere" / "new" / "x")}
