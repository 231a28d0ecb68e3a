# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`evaluate_craft.py`: files and numbers, same seeds for all models, resuming, refusals."""

import importlib.util
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_craft
from diffusers_craft import load_pipeline, register_reward
from diffusers_craft.rewards import registry


SCRIPT = Path(__file__).parents[1] / "examples" / "craft" / "evaluate_craft.py"
PROMPTS = ["a red circle", "two green stars", "a blue cross", "a square and a star", "three circles"]


class Brightness:
    """Mean grey level; the prompts play no part."""

    name = "brightness"
    source = {"unit": "grey level, 0 to 255"}

    def __init__(self, **options):
        self.options = options

    def score(self, prompts, images):
        return np.array([np.asarray(image.convert("L"), dtype=np.float32).mean() for image in images])


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_craft", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_craft"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["evaluate_craft"]


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    register_reward("brightness", Brightness)


@pytest.fixture(scope="module")
def tuned(random_sd15, tmp_path_factory):
    """Another model: the base with a perturbed UNet."""
    pipeline = load_pipeline(str(random_sd15), device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("tuned") / "craft"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(random_sd15, tuned, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    models = ["--base", f"base={random_sd15}", "--tuned", str(tuned), f"same={random_sd15}"]
    numbers = ["--num_inference_steps", 2, "--guidance_scale", 2, "--batch_size", 2, "--seed", 3]
    return [str(argument) for argument in (*models, "--prompts", prompts, "--rewards", "brightness", *numbers)]


@pytest.fixture
def run(script, arguments, tmp_path, monkeypatch):
    """Runs the script on three shards and returns its output folder."""
    monkeypatch.setattr(script, "ROWS_PER_SHARD", 2)

    def _run(*extra: str) -> Path:
        script.main(script.parse_args([*arguments, "--output_dir", str(tmp_path / "out"), *extra]))
        return tmp_path / "out"

    return _run


@pytest.fixture(scope="module")
def finished_once(script, arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "ROWS_PER_SHARD", 2)
        patch.setitem(registry._FACTORIES, "brightness", Brightness)
        script.main(script.parse_args([*arguments, "--output_dir", str(folder)]))
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of a run's output where `run` finds it."""
    return Path(shutil.copytree(finished_once, tmp_path / "out"))


def test_results_table_and_grid(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = {row["model"]: row for row in results["rows"]}
    assert list(rows) == ["base", "craft", "same"]
    assert all(row["metric"] == "brightness" and row["n"] == 5 for row in rows.values())
    assert rows["base"]["win_rate"] is None
    assert rows["same"]["mean"] == rows["base"]["mean"], "the same weights drew other pictures: seeds differ"
    assert [rows["same"][key] for key in ("win_rate", "win_rate_low", "win_rate_high")] == [0.5, 0.5, 0.5]
    assert rows["craft"]["mean"] != rows["base"]["mean"]
    settings = results["settings"]
    assert settings["seed"] == 3 and settings["num_prompts"] == 5
    assert settings["metrics"] == {"brightness": {"unit": "grey level, 0 to 255"}}
    assert settings["models"]["craft"]["guidance_scale"] == 2
    assert settings["models"]["craft"]["scheduler"]["class"] == "DDIMScheduler"
    with Image.open(finished / "grid.png") as grid:
        assert grid.width > 4 * 192 and grid.height > 5 * 192
    assert "| craft" in (finished / "table.md").read_text()
    assert json.loads((finished / "craft_evaluate.json").read_text())["versions"]["diffusers"]


def test_scores_are_those_of_the_stored_images(finished):
    folder = finished
    stage = diffusers_craft.WorkDir(folder)
    options = json.loads((folder / "images" / "craft" / "options.json").read_text())["options"]
    table = stage.stage("images/craft", options, 5, 2).read()
    assert table["prompt"].to_pylist() == PROMPTS
    seeds = [
        diffusers_craft.derive_seed(diffusers_craft.derive_seed(3, "evaluation"), "candidate", i, 0) for i in range(5)
    ]
    assert table["seed"].to_pylist() == seeds
    results = json.loads((folder / "results.json").read_text())
    row = next(row for row in results["rows"] if row["model"] == "craft")
    images = [Image.open(io.BytesIO(image["bytes"])) for image in table["image"].to_pylist()]
    assert row["mean"] == pytest.approx(Brightness().score([], images).mean(), rel=1e-6)


def test_second_run_makes_nothing_and_ends_alike(run, finished, script, monkeypatch, capsys):
    folder = finished
    before = {name: (folder / name).read_bytes() for name in ("results.json", "table.md", "grid.png")}

    def refuse(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(script, "generate_candidates", refuse)
    monkeypatch.setattr(Brightness, "score", refuse)
    run()
    assert before == {name: (folder / name).read_bytes() for name in before}
    printed = capsys.readouterr().out
    assert "| craft" in printed and "Win rate against base" in printed


def test_interrupted_run_makes_only_what_is_missing(run, finished):
    folder = finished
    before = (folder / "results.json").read_bytes()
    lost = [
        folder / "images" / "craft" / "part-00001.parquet",
        folder / "scores" / "craft" / "brightness" / "part-00002.parquet",
    ]
    kept = folder / "images" / "craft" / "part-00000.parquet"
    contents = {path: path.read_bytes() for path in lost}
    written = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    run()
    assert (folder / "results.json").read_bytes() == before
    assert contents == {path: path.read_bytes() for path in lost}
    assert kept.stat().st_mtime_ns == written


def test_another_setting_is_refused_by_name(run, finished):
    with pytest.raises(ValueError, match=r"stage 'images/base' .* --guidance_scale \(2.0 there, 5.0 now\)"):
        run("--guidance_scale", "5")


def test_a_retrained_model_under_the_same_name_is_refused(run, finished, random_sd15):
    with pytest.raises(ValueError, match="stage 'images/craft' .* --pretrained_model_name_or_path"):
        run("--tuned", f"craft={random_sd15}")


def test_a_missing_model_is_found_before_anything_is_generated(run, script, monkeypatch):
    monkeypatch.setattr(script, "generate_candidates", lambda *_: pytest.fail("generated"))
    with pytest.raises(ValueError, match="nowhere"):
        run("--tuned", "x=./nowhere")


def test_exact_metric_for_a_tiny_base_with_captions(run, script, monkeypatch):
    monkeypatch.setattr(script, "is_tiny", lambda name: True)
    results = json.loads((run() / "results.json").read_text())
    assert [row["metric"] for row in results["rows"]] == ["exact", "brightness"] * 3
    assert "exact scorer" in results["settings"]["metrics"]["exact"]["scorer"]


def test_no_exact_metric_for_other_prompts(script, monkeypatch):
    monkeypatch.setattr(script, "is_tiny", lambda name: True)
    arguments = ["--base", "b", "--prompts", "p", "--output_dir", "o", "--rewards", "brightness"]
    assert list(script.load_metrics(script.parse_args(arguments), "b", ["a cat"])[0]) == ["brightness"]
    assert list(script.load_metrics(script.parse_args(arguments), "b", PROMPTS)[0]) == ["exact", "brightness"]


def test_reward_checkpoints_reach_the_rewards(script):
    arguments = ["--base", "b", "--prompts", "p", "--output_dir", "o", "--rewards", "brightness"]
    args = script.parse_args([*arguments, "--reward_checkpoint", "brightness=here"])
    assert script.load_metrics(args, "b", PROMPTS)[0]["brightness"].options["checkpoint"] == "here"
    with pytest.raises(ValueError, match="--reward_checkpoint: expected .*'?pickscore"):
        script.load_metrics(script.parse_args([*arguments, "--reward_checkpoint", "pickscore=x"]), "b", PROMPTS)


def test_invalid_images_are_left_out_and_raise_an_alarm(run, script, monkeypatch, capsys):
    """A model whose first picture is black: one pair fewer, and a line that says so."""
    original = script.generate_candidates

    def with_black(pipeline, rows, settings, stage, seed, shards):
        original(pipeline, rows, settings, stage, seed, shards=shards)
        if stage.path.name == "craft":
            table = stage.read_shard(0)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            columns["valid"][0], columns["problem"][0] = False, "black"
            stage.write(0, type(table).from_pydict(columns, schema=table.schema))

    monkeypatch.setattr(script, "generate_candidates", with_black)
    results = json.loads((run() / "results.json").read_text())
    assert {row["model"]: row["n"] for row in results["rows"]} == {"base": 5, "craft": 4, "same": 5}
    assert ("craft", "invalid", 1) in [(alarm["model"], alarm["alarm"], alarm["value"]) for alarm in results["alarms"]]
    assert "Alarm: craft: 1 of 5 images are not valid" in capsys.readouterr().out


def test_names_of_models(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert script.parse_models("org/base-model", ["outputs/craft/", "sft=outputs/x"]) == {
        "base-model": "org/base-model",
        "craft": "outputs/craft/",
        "sft": "outputs/x",
    }
    with pytest.raises(ValueError, match="--tuned: expected distinct names, found 'craft' twice; write NAME=MODEL"):
        script.parse_models("base", ["x/craft", "y/craft"])
    for text in ("a b=model", "name=", "../=x", "a=b"):
        with pytest.raises(ValueError, match="--base: expected MODEL or NAME=MODEL"):
            script.parse_models(text, [])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts", "missing.txt"], ["--prompts", "missing.txt"]),
        (["--prompts", "prompts.txt", "--rewards", "beauty"], ["--rewards: expected one of", "'beauty'"]),
        (["--prompts", "prompts.txt", "--tuned", "x/craft", "y/craft"], ["--tuned", "'craft' twice"]),
        (["--prompts", "prompts.txt", "--num_prompts", "2"], ["--num_prompts: expected 1 to 1", "found 2"]),
    ],
)
def test_user_errors_end_in_one_line_and_exit_code_2(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--base", "tiny-sd15", "--output_dir", "out", *flags])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_flags_are_frozen(script, monkeypatch):
    flags = vars(script.parse_args(["--base", "b", "--prompts", "p", "--output_dir", "o"]))
    assert sorted(flags) == sorted(
        "base tuned revision variant prompts prompt_column num_prompts rewards reward_checkpoint reward_batch_size"
        " reward_backend reward_precision reward_residency dataloader_num_workers num_inference_steps guidance_scale resolution batch_size dtype device seed output_dir".split()
    )
