# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`evaluate_craft.py` and `Evaluation`: files and numbers, same seeds for all models, resuming, refusals."""

import importlib.util
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffusers_craft import Evaluation, GenerationSettings, SetMetric, UserError, load_pipeline, register_reward
from diffusers_craft.evaluation import prompt_run
from diffusers_craft.evaluation import run as engine
from diffusers_craft.evaluation.args import choose_embedding, find_training_data, parse_models
from diffusers_craft.evaluation.metrics import load_set_metrics
from diffusers_craft.prompts.sets import EvaluationPrompt
from diffusers_craft.rewards import settings as registry
from diffusers_craft.scripts import PromptSet, WorkDir, derive_seed, write_run_json


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
def brightness():
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
    monkeypatch.setattr(prompt_run, "ROWS_PER_SHARD", 2)

    def _run(*extra: str) -> Path:
        script.main(script.parse_args([*arguments, "--output_dir", str(tmp_path / "out"), *extra]))
        return tmp_path / "out"

    return _run


@pytest.fixture(scope="module")
def finished_once(script, arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_run, "ROWS_PER_SHARD", 2)
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
    assert list(rows) == ["base", "craft", "same"] and all(row["prompts"] == "prompts" for row in rows.values())
    assert all(row["metric"] == "brightness" and row["n"] == 5 for row in rows.values())
    assert rows["base"]["win_rate"] is None
    assert rows["same"]["mean"] == rows["base"]["mean"], "the same weights drew other pictures: seeds differ"
    assert [rows["same"][key] for key in ("win_rate", "win_rate_low", "win_rate_high")] == [0.5, 0.5, 0.5]
    assert rows["craft"]["mean"] != rows["base"]["mean"]
    settings = results["settings"]
    assert settings["seed"] == 3 and settings["base"] == "base"
    assert settings["prompts"]["prompts"]["prompts"].startswith("5 prompts, hash ")
    assert settings["prompts"]["prompts"]["metrics"] == ["brightness"]
    assert settings["metrics"] == {"brightness": {"unit": "grey level, 0 to 255"}}
    assert settings["models"]["craft"]["guidance_scale"] == 2
    assert settings["models"]["craft"]["scheduler"]["class"] == "DDIMScheduler"
    with Image.open(finished / "grid.png") as grid:
        assert grid.width > 4 * 192 and grid.height > 5 * 192
    assert "| craft" in (finished / "table.md").read_text()
    assert r"\begin{tabular}" in (finished / "table.tex").read_text()
    assert (finished / "table.csv").read_text().splitlines()[1].startswith("prompts,,base,brightness,5,")
    assert json.loads((finished / "craft_evaluate.json").read_text())["versions"]["diffusers"]


@pytest.mark.parametrize("stage", ["scores/prompts/{}/brightness", "statistics/prompts/{}"])
def test_shards_of_another_model_or_place_are_refused(run, finished, stage):
    base, craft = (finished / stage.format(model) for model in ("base", "craft"))
    path = craft / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes((base / path.name).read_bytes())
    with pytest.raises(
        UserError, match=f"^{path}: expected a Parquet file, found .* the file of another stage or tool; remove it"
    ):
        run()
    path.write_bytes((craft / "part-00000.parquet").read_bytes())
    with pytest.raises(
        UserError, match=f"^{path}: expected the rows 2 to 3 in order, found 2 rows from 0 to 1; remove"
    ):
        run()
    path.unlink()
    run()
    assert path.read_bytes() == whole


def test_scores_are_those_of_the_stored_images(finished):
    folder = finished
    stage = WorkDir(folder)
    options = json.loads((folder / "images" / "prompts" / "craft" / "options.json").read_text())["options"]
    table = stage.stage("images/prompts/craft", options, 5, 2).read()
    assert table["prompt"].to_pylist() == PROMPTS
    seeds = [derive_seed(derive_seed(3, "evaluation"), "candidate", i, 0) for i in range(5)]
    assert table["seed"].to_pylist() == seeds
    results = json.loads((folder / "results.json").read_text())
    row = next(row for row in results["rows"] if row["model"] == "craft")
    images = [Image.open(io.BytesIO(image["bytes"])) for image in table["image"].to_pylist()]
    assert row["mean"] == pytest.approx(Brightness().score([], images).mean(), rel=1e-6)


def test_second_run_makes_nothing_and_ends_alike(run, finished, script, monkeypatch, capsys):
    folder = finished
    before = {name: (folder / name).read_bytes() for name in ("results.json", "table.md", "grid.png", "report.html")}

    def refuse(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(engine, "generate_candidates", refuse)
    monkeypatch.setattr(Brightness, "score", refuse)
    run()
    assert before == {name: (folder / name).read_bytes() for name in before}
    printed = capsys.readouterr().out
    assert "| craft" in printed and "Win rate against base" in printed


def test_interrupted_run_makes_only_what_is_missing(run, finished):
    folder = finished
    before = (folder / "results.json").read_bytes()
    lost = [
        folder / "images" / "prompts" / "craft" / "part-00001.parquet",
        folder / "scores" / "prompts" / "craft" / "brightness" / "part-00002.parquet",
        folder / "statistics" / "prompts" / "craft" / "part-00000.parquet",
    ]
    kept = folder / "images" / "prompts" / "craft" / "part-00000.parquet"
    contents = {path: path.read_bytes() for path in lost}
    written = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    run()
    assert (folder / "results.json").read_bytes() == before
    assert contents == {path: path.read_bytes() for path in lost}
    assert kept.stat().st_mtime_ns == written


def test_another_setting_is_refused_by_name(run, finished):
    with pytest.raises(ValueError, match=r"stage 'images/prompts/base' .* --guidance_scale \(2.0 there, 5.0 now\)"):
        run("--guidance_scale", "5")


def test_a_retrained_model_under_the_same_name_is_refused(run, finished, random_sd15):
    with pytest.raises(ValueError, match="stage 'images/prompts/craft' .* --pretrained_model_name_or_path"):
        run("--tuned", f"craft={random_sd15}")


def test_a_missing_model_is_found_before_anything_is_generated(run, script, monkeypatch):
    monkeypatch.setattr(engine, "generate_candidates", lambda *_: pytest.fail("generated"))
    with pytest.raises(ValueError, match="nowhere"):
        run("--tuned", "x=./nowhere")


def test_a_unet_alone_is_a_tuned_model_of_the_base(run, tuned):
    """As `publish_craft.py --push_unet_only` publishes it."""
    folder = run("--tuned", f"whole={tuned}", f"unet={tuned / 'unet'}")
    whole, unet = (
        [
            pq.read_table(part)["image"].to_pylist()
            for part in sorted((folder / "images" / "prompts" / name).glob("*.parquet"))
        ]
        for name in ("whole", "unet")
    )
    assert len(whole) == 3 and whole == unet


def test_training_data_of_a_checkpoint_are_those_of_its_run(tmp_path, dataset_folder):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "craft_run.json").write_text(json.dumps({"options": {"dataset_name": str(dataset_folder)}}))
    found = find_training_data({"base": "b", "step": str(tmp_path / "run" / "checkpoint-2")}, [])
    assert len(found["step"]) == 10


def test_exact_metric_for_a_tiny_base_with_captions(run, monkeypatch):
    monkeypatch.setattr(engine, "is_tiny", lambda name: True)
    results = json.loads((run() / "results.json").read_text())
    assert [row["metric"] for row in results["rows"]] == ["exact", "brightness"] * 3
    assert "exact scorer" in results["settings"]["metrics"]["exact"]["scorer"]


def test_the_exact_metric_takes_captions_only(monkeypatch):
    monkeypatch.setattr(engine, "is_tiny", lambda name: True)
    metrics = Evaluation("b", (), "p", rewards=["brightness"])._load_metrics("cpu", "b")
    assert list(metrics) == ["exact", "brightness"]
    sets = [PromptSet("x", tuple(map(EvaluationPrompt, prompts))) for prompts in (PROMPTS, ["a cat"])]
    assert [metrics["exact"].bind(prompts) for prompts in sets] == [True, False]


def test_reward_checkpoints_reach_the_rewards(run, monkeypatch):
    made = []
    register_reward("brightness", lambda **options: made.append(options) or Brightness(**options))
    monkeypatch.setattr(Evaluation, "_open_models", lambda *_: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        run("--reward_checkpoint", "brightness=here")
    assert made[0]["checkpoint"] == "here"
    with pytest.raises(UserError, match="--reward_checkpoint: expected .*'?pickscore"):
        run("--reward_checkpoint", "pickscore=x")


def test_invalid_images_are_left_out_and_raise_an_alarm(run, script, monkeypatch, capsys):
    """A model whose first picture is black: one pair fewer, and a line that says so."""
    original = engine.generate_candidates

    def with_black(pipeline, rows, settings, stage, seed, shards):
        original(pipeline, rows, settings, stage, seed, shards=shards)
        if stage.path.name == "craft":
            table = stage.read_shard(0)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            columns["valid"][0], columns["problem"][0] = False, "black"
            stage.write(0, type(table).from_pydict(columns, schema=table.schema))

    monkeypatch.setattr(engine, "generate_candidates", with_black)
    results = json.loads((run() / "results.json").read_text())
    assert {row["model"]: row["n"] for row in results["rows"]} == {"base": 5, "craft": 4, "same": 5}
    assert ("craft", "invalid", 1) in [(alarm["model"], alarm["alarm"], alarm["value"]) for alarm in results["alarms"]]
    assert "Alarm: craft: 1 of 5 images are not valid" in capsys.readouterr().out


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert parse_models("org/base-model", ["outputs/craft/", "sft=outputs/x"]) == {
        "base-model": "org/base-model",
        "craft": "outputs/craft/",
        "sft": "outputs/x",
    }
    with pytest.raises(ValueError, match="--tuned: expected distinct names, found 'craft' twice; write NAME=MODEL"):
        parse_models("base", ["x/craft", "y/craft"])
    for text in ("a b=model", "name=", "../=x", "a=b"):
        with pytest.raises(ValueError, match="--base: expected MODEL or NAME=MODEL"):
            parse_models(text, [])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts", "missing.txt"], ["--prompts", "missing.txt"]),
        (["--prompts", "prompts.txt", "--rewards", "beauty"], ["--rewards: expected one of", "'beauty'"]),
        (["--prompts", "prompts.txt", "--tuned", "x/craft", "y/craft"], ["--tuned", "'craft' twice"]),
        (["--prompts", "prompts.txt", "--num_prompts", "2"], ["--num_prompts: expected 1 to 1", "found 2"]),
        (
            ["--prompts", "prompts.txt", "--images_per_prompt", "0"],
            ["--images_per_prompt: expected at least 1, found 0"],
        ),
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


def test_several_prompt_sets_and_images_a_prompt(script, arguments, tmp_path):
    """Two sets, one with categories; every image from a seed of its own, models loaded once each."""
    own = tmp_path / "own.jsonl"
    own.write_text(
        "\n".join(json.dumps({"prompt": p, "category": c}) for p, c in [("a", "x"), ("b", "x"), ("c", "y")])
    )
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        load = engine.load_model
        patch.setattr(engine, "load_model", lambda source: loaded.append(source["name_or_path"]) or load(source))
        index = arguments.index("--prompts")
        sets = [*arguments[: index + 2], f"second={own}", *arguments[index + 2 :]]
        script.main(script.parse_args([*sets, "--images_per_prompt", "2", "--output_dir", str(tmp_path / "out")]))
    assert len(loaded) == 2 * 3, "once to look, once to generate"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [(row["prompts"], row["category"], row["n"]) for row in results["rows"] if row["model"] == "craft"]
    assert found == [("prompts", None, 5), ("second", None, 3), ("second", "x", 2), ("second", "y", 1)]
    options = json.loads((tmp_path / "out/images/second/craft/options.json").read_text())
    table = WorkDir(tmp_path / "out").stage("images/second/craft", options["options"], 6, 64).read()
    assert table["prompt"].to_pylist() == ["a", "a", "b", "b", "c", "c"]
    assert len(set(table["seed"].to_pylist())) == 6
    assert len({image["bytes"] for image in table["image"].to_pylist()}) == 6
    scores = [Image.open(io.BytesIO(image["bytes"])).convert("L") for image in table["image"].to_pylist()]
    means = np.array([np.asarray(image, dtype=np.float32).mean() for image in scores])
    row = next(
        r for r in results["rows"] if r["prompts"] == "second" and r["model"] == "craft" and r["category"] is None
    )
    assert row["mean"] == pytest.approx(means.mean(), rel=1e-6)
    assert row["mean_of_categories"] == pytest.approx((means[:4].mean() + means[4:].mean()) / 2, rel=1e-6)
    assert {"seed_diversity"} <= {check["alarm"] for check in results["checks"]}
    assert (tmp_path / "out" / "grid_second.png").exists()


def test_training_data_is_found_beside_the_model_and_checked_against(run, tuned, tmp_path, make_images):
    """A dataset with a column `brightness` and the very pictures that the model draws."""
    folder = run()
    rows = [
        row
        for path in sorted((folder / "images/prompts/craft").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    data = {"image": [row["image"] for row in rows], "prompt": PROMPTS, "brightness": [1.0] * 5}
    (tmp_path / "work" / "dataset").mkdir(parents=True)
    pq.write_table(pa.table(data), tmp_path / "work" / "dataset" / "train-00000-of-00001.parquet")
    checks = {(c["model"], c["alarm"]): c for c in json.loads((folder / "results.json").read_text())["checks"]}
    assert checks["craft", "memory"]["value"] is None and "unknown" in checks["craft", "memory"]["limit"]
    record = tuned / "craft_run.json"
    record.write_text(json.dumps({"options": {"dataset_name": str(tmp_path / "work")}}))
    try:
        run()
    finally:
        record.unlink()
    checks = {(c["model"], c["alarm"]): c for c in json.loads((folder / "results.json").read_text())["checks"]}
    assert checks["craft", "memory"]["value"] == 1 and checks["craft", "memory"]["fired"]
    assert "needs a reward that was trained on and one that was not" in checks["craft", "reward_gap"]["limit"]
    with pytest.raises(ValueError, match="--training_data: expected NAME=VALUE, with a NAME of craft, same"):
        run("--training_data", "base=x")


def test_training_data_named_relative_to_another_folder(dataset_folder, tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    shutil.copytree(dataset_folder, tmp_path / "outputs" / "top")
    monkeypatch.chdir(tmp_path)
    write_run_json("tuned/craft_run.json", {"dataset_name": "outputs/top", "train_data_dir": None})
    monkeypatch.chdir(tmp_path / "outputs")
    found = find_training_data({"base": "base", "tuned": str(tmp_path / "tuned")}, [])
    assert len(found["tuned"]) == 10


def test_a_metric_for_certain_prompts_is_used_there_alone(script, arguments, tmp_path, monkeypatch, capsys):
    """One that abstains from the prompt `b`, binds to the set `second` only, and has a note for the report."""

    class Picky(Brightness):
        name, abstains, note = "picky", True, "picky: not comparable"

        def bind(self, prompts):
            return prompts.name == "second"

        def score(self, prompts, images):
            return np.where(np.array(prompts) == "b", np.nan, super().score(prompts, images))

    register_reward("picky", Picky)
    (tmp_path / "own.txt").write_text("a\nb\nc")
    index = arguments.index("--prompts")
    sets = [*arguments[: index + 2], f"second={tmp_path / 'own.txt'}", *arguments[index + 2 :]]
    index = sets.index("--rewards")
    both = [*sets[: index + 2], "picky", *sets[index + 2 :], "--output_dir", str(tmp_path / "out")]
    script.main(script.parse_args(both))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {(row["prompts"], row["metric"], row["n"]) for row in results["rows"] if row["model"] == "craft"}
    assert found == {("prompts", "brightness", 5), ("second", "brightness", 3), ("second", "picky", 2)}
    assert results["settings"]["notes"] == ["picky: not comparable"]
    assert "picky: not comparable" in (tmp_path / "out" / "report.html").read_text()
    assert "second: picky" in capsys.readouterr().out
    alone = [*arguments, "--rewards", "picky", "--output_dir", str(tmp_path / "other")]
    with pytest.raises(
        ValueError, match="--rewards picky: expected prompts that it can judge, picky=FILE, found prompts"
    ):
        script.main(script.parse_args(alone))


def test_the_base_alone(script, arguments, tmp_path, capsys):
    """Nothing to compare with: scores without win rates, no checks, and a report all the same."""
    start, stop = arguments.index("--tuned"), arguments.index("--prompts")
    alone = [*arguments[:start], *arguments[stop:], "--output_dir", str(tmp_path / "out")]
    script.main(script.parse_args(alone))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == ["base"] and results["checks"] == results["alarms"] == []
    assert "Win rate" not in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Scores</h2>" in page and "<h2>Win rates</h2>" not in page and "<h2>Alarms</h2>" not in page


def test_how_alarms_compare_images():
    class WithTower(Brightness):
        def tower(self, images):
            return torch.ones(len(images), 2)

    for choice, base, metrics, expected in (
        ("auto", "b", {"brightness": Brightness()}, "pixels"),
        ("auto", "b", {"a": WithTower()}, "clip"),
        ("auto", "tiny-sd15", {"a": WithTower()}, "pixels"),
        ("pixels", "b", {"a": WithTower()}, "pixels"),
    ):
        embed, record = choose_embedding(choice, base, metrics)
        assert record["alarm_embedding"] == expected
        if expected == "clip":
            np.testing.assert_allclose(embed([Image.new("RGB", (4, 4))]), [[2**-0.5] * 2])
    with pytest.raises(UserError, match="--alarm_embedding: expected one of auto, clip, pixels, found 'eye'"):
        choose_embedding("eye", "b", {})
    with pytest.raises(UserError, match="--alarm_embedding clip: expected the reward aesthetic or clip_score"):
        choose_embedding("clip", "b", {"brightness": Brightness()})


class MeanDifference(SetMetric):
    """Mean grey level of a set minus that of the base."""

    name, unit, lower_is_better = "mean_difference", "grey levels", True

    def compute(self, images, reference_images=None):
        if reference_images is None:
            return float("nan")
        assert len(images) == len(reference_images) and len(images[1:]) == len(images) - 1
        return float(np.subtract(*(np.mean([i.convert("L") for i in one]) for one in (images, reference_images))))


def test_the_library_makes_the_same_files_as_the_script(
    finished, arguments, random_sd15, tuned, tmp_path, monkeypatch
):
    monkeypatch.setattr(prompt_run, "ROWS_PER_SHARD", 2)
    results = Evaluation(
        f"base={random_sd15}",
        {"craft": str(tuned), "same": str(random_sd15)},
        arguments[arguments.index("--prompts") + 1],
        ["brightness"],
        settings=GenerationSettings(num_inference_steps=2, guidance_scale=2, batch_size=2),
        output_dir=tmp_path / "library",
        seed=3,
    ).run()

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    script, library = contents(finished), contents(tmp_path / "library")
    del script["craft_evaluate.json"]  # the options, which are the script's
    assert script.keys() == library.keys() and [name for name in script if script[name] != library[name]] == []
    assert list(results.rows) == json.loads(script["results.json"])["rows"]
    assert results.scores["prompts"]["craft"]["brightness"].shape == (5, 1)


def test_an_evaluation_without_a_folder_leaves_none(random_sd15, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = PromptSet("own", tuple(map(EvaluationPrompt, PROMPTS[:2])))
    models, settings = {"mine": Brightness()}, GenerationSettings(num_inference_steps=1)
    results = Evaluation(str(random_sd15), {}, prompts, rewards=[], reward_models=models, settings=settings).run()
    assert list(results.scores["own"]) == ["random-sd15"] and list(results.settings["metrics"]) == ["mine"]
    assert list(tmp_path.iterdir()) == []


def test_several_processes_need_a_folder(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="output_dir: expected a folder, which several processes share, found none"):
        Evaluation("b", (), "p").run()


def test_a_metric_that_scores_nothing_is_said(run, monkeypatch, caplog):
    monkeypatch.setattr(Brightness, "abstains", True, raising=False)
    monkeypatch.setattr(Brightness, "score", lambda self, prompts, images: np.full(len(images), np.nan))
    run()
    assert "prompts: brightness scored none of the images, so no table shows it" in caplog.messages


def test_a_metric_of_the_set_stands_in_every_table(run, finished, monkeypatch):
    """Added to a finished evaluation: computed once per model, from images that are decoded as they are asked for."""
    flags = ["--set_metrics", "diversity", f"{__name__}:MeanDifference"]
    folder = run(*flags)
    results = json.loads((folder / "results.json").read_text())
    own = {(row["model"], row["metric"]): row for row in results["rows"] if row["metric"] != "brightness"}
    means = {row["model"]: row["mean"] for row in results["rows"] if row["metric"] == "brightness"}
    assert own["base", "mean_difference"]["mean"] is None and own["same", "mean_difference"]["mean"] == 0
    assert own["craft", "mean_difference"]["mean"] == pytest.approx(means["craft"] - means["base"], rel=1e-4)
    assert own["craft", "diversity"]["mean"] != own["base", "diversity"]["mean"] == own["same", "diversity"]["mean"]
    checks = {check["alarm"]: check for check in results["checks"] if check["model"] == "craft"}
    assert own["craft", "diversity"]["mean"] == pytest.approx(checks["diversity"]["value"], rel=1e-4)
    assert own["craft", "diversity"]["n"] == 5 and own["craft", "diversity"]["win_rate"] is None
    assert results["settings"]["prompts"]["prompts"]["metrics"] == ["brightness", "diversity", "mean_difference"]
    assert results["settings"]["metrics"]["mean_difference"]["unit"] == "grey levels"
    header, _, base, *_ = (folder / "table.md").read_text().split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["brightness", "diversity", "mean_difference"]
    assert base.split("|")[-2].strip() == "-"
    assert "prompts,,craft,mean_difference,5," in (folder / "table.csv").read_text()
    assert "mean_difference" in (folder / "report.html").read_text()
    before = (folder / "results.json").read_bytes()
    monkeypatch.setattr(MeanDifference, "compute", lambda *_: pytest.fail("computed again"))
    assert (run(*flags) / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../../evil", "a/b c", "..", "x|y", "a\nb", "x\\y", "p" * 130, "", "é" * 70])
def test_names_of_prompt_sets_that_are_no_names_of_folders_are_refused(name, tmp_path):
    (tmp_path / "four.txt").write_text("a")
    own = PromptSet(name, (EvaluationPrompt("a"),))
    for given in [own, *([f"{name}={tmp_path / 'four.txt'}"] if name else [])]:
        with pytest.raises(UserError, match="^--prompts: expected SOURCE or NAME=SOURCE .*found the name") as error:
            Evaluation("b", (), given)._load_prompt_sets()
        assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my prompts (v2).txt", "my-prompts-v2"),
        ("odd|name.txt", "odd-name"),
        ("plain_1.0-x.txt", "plain_1.0-x"),
        ("猫.txt", "猫"),
        ("e\u0301.txt", "é"),
        ("p" * 200 + ".txt", "p" * 120),
    ],
)
def test_names_of_files_become_names_of_folders(file, name, tmp_path):
    (tmp_path / file).write_text("a\nb")
    (found,) = Evaluation("b", (), str(tmp_path / file))._load_prompt_sets()
    assert found.prompts.name == name and found.prompts.prompts == ["a", "b"]


def test_files_whose_names_become_one_need_names(tmp_path):
    files = [tmp_path / "a b.txt", tmp_path / "a (b).txt"]
    for file in files:
        file.write_text("a")
    with pytest.raises(UserError, match="--prompts: expected sets of different names"):
        Evaluation("b", (), list(map(str, files)))._load_prompt_sets()
    named = [f"x={files[0]}", str(files[1])]
    assert [one.prompts.name for one in Evaluation("b", (), named)._load_prompt_sets()] == ["x", "a-b"]


@pytest.mark.parametrize("name", ["..", "...", "m" * 130])
def test_names_that_leave_the_output_folder_are_no_names_of_models_and_metrics(name):
    with pytest.raises(UserError, match="--tuned: expected MODEL or NAME=MODEL"):
        parse_models("base", [f"{name}=model"])
    with pytest.raises(UserError, match="--set_metrics: expected a name of letters"):
        load_set_metrics([type("Own", (SetMetric,), {"name": name, "compute": lambda *_: 0.0})()])


def test_sets_of_one_name_are_refused(run, arguments, tmp_path):
    (tmp_path / "prompts.txt").write_text("a")
    with pytest.raises(ValueError, match="--prompts: expected sets of different names"):
        run("--prompts", arguments[arguments.index("--prompts") + 1], str(tmp_path / "prompts.txt"))


def test_flags_are_frozen(script, monkeypatch):
    flags = vars(script.parse_args(["--base", "b", "--prompts", "p", "--output_dir", "o"]))
    assert sorted(flags) == sorted(
        "base tuned revision variant single_file_config cache_dir pretrained_vae_model_name_or_path prompts set_metrics prompt_column num_prompts images_per_prompt training_data alarm_embedding rewards reward_checkpoint reward_batch_size"
        " reward_backend reward_precision reward_residency dataloader_num_workers num_inference_steps guidance_scale resolution batch_size dtype device seed output_dir".split()
    )
