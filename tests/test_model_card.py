# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Cards and file lists of models: numbers as in the run's files, metadata that the Hub reads, no path of this machine."""

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from build_driver import load_script
from hub_repos import card_errors
from huggingface_hub import ModelCard
from training_driver import ROOT

from diffusers_craft import SFT, Objective, objectives, publish_model
from diffusers_craft.hub.card import License, without_paths
from diffusers_craft.hub.model import model_files
from diffusers_craft.hub.model_card import Published, Results, eval_results, model_card, read_results
from diffusers_craft.hub.upload import as_hub_id, published_id
from diffusers_craft.objectives.registry import OBJECTIVES
from diffusers_craft.scripts import HubRepo


RECORD = {
    "options": {
        "pretrained_model_name_or_path": "/home/me/models/sd15",
        "dataset_name": "/data/top100",
        "loss": "sft",
        "rank": 4,
        "max_train_steps": 120,
        "learning_rate": 5e-5,
        "use_ema": True,
        "scale_lr": False,
        "snr_gamma": None,
        "output_dir": "/data/out",
        "hub_model_id": "org/x",
    },
    "versions": {"diffusers_craft": "0.9", "torch": "2.6"},
    "num_rows": 97,
    "global_batch_size": 128,
    "num_processes": 4,
    "loss_history": [{"step": 1, "train_loss": 0.25}, {"step": 120, "train_loss": 0.125}],
    "family": "stable-diffusion",
    "captions": ["a | b"],
    "device": "NVIDIA H100",
    "speed": {"device_hours": 6.0, "images_per_second": 12.345, "peak_gb": 41.26, "mfu": None},
}
RESULTS = {
    "settings": {
        "models": {"base": {"model": "org/base"}, "craft": {"model": "outputs/craft"}},
        "metrics": {"pickscore": {"unit": "logit_scale.exp() * cosine"}},
        "prompts": "org/prompts",
    },
    "rows": [
        {"model": "base", "metric": "pickscore", "n": 300, "mean": 20.5, "win_rate": None},
        {"model": "craft", "metric": "pickscore", "n": 298, "mean": 21.25, "win_rate": 0.75}
        | {"win_rate_low": 0.7, "win_rate_high": 0.8},
    ],
    "alarms": [
        {"model": "craft", "message": "craft: mean saturation changed"},
        {"model": "sft", "message": "sft: too alike"},
    ],
}
OPENRAIL = License(("openrail++",))
PUBLISHED = Published("org/tuned", "pipeline", "org/base", "org/top100", OPENRAIL, ["a | b", "c"])


@pytest.fixture
def results(tmp_path):
    return results_of(RESULTS, tmp_path)


def results_of(content: dict, folder: Path) -> Results:
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "grid.png").write_bytes(b"picture")
    return read_results(folder, Path("outputs/craft"), "org/other")


def test_numbers_of_the_card_are_those_of_the_files(results):
    text = model_card(RECORD, PUBLISHED, results).text
    for row in (
        "| device | 4 x NVIDIA H100 |",
        "| device hours | 6 |",
        "| images per second, over all devices | 12.3 |",
        "| peak memory of a process, GB | 41.3 |",
        "| images | 97 |",
        "| optimizer steps | 120 |",
        "| `--learning_rate` | 5e-05 |",
        "| `--use_ema` |  |",
        "| `org/prompts` | 298 | pickscore | 20.5 | 21.25 | 75.0% [70.0%, 80.0%] |",
    ):
        assert row in text
    assert "by supervised fine-tuning" in text
    assert "craft: mean saturation changed" in text and "sft: too alike" not in text
    assert not any(word in text for word in ("--rank", "scale_lr", "snr_gamma", "hub_model_id", "output_dir"))


def test_the_table_of_a_card_has_the_unit_of_its_pictures_and_the_metadata_the_raw_score(tmp_path):
    rows = [{**row, "metric": "hps_v2.1", "mean": row["mean"] / 100} for row in RESULTS["rows"]]
    results = results_of({**RESULTS, "rows": rows}, tmp_path)
    assert "| hps_v2.1 x100 | 20.5 | 21.25 |" in model_card(RECORD, PUBLISHED, results).text
    assert eval_results(results)[0].metric_value == 0.2125


def test_metadata_are_what_the_hub_reads(results):
    card = model_card(RECORD, PUBLISHED, results)
    assert card_errors(card.content, "model") == []
    data = ModelCard(card.content).data  # as huggingface_hub reads it back
    assert (data.base_model, data.datasets, data.license) == ("org/base", ["org/top100"], "openrail++")
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("pickscore", 21.25),
        ("pickscore_win_rate", 0.75),
    ]
    assert data.eval_results[0].dataset_type == "org/prompts"
    assert [entry["output"]["url"] for entry in data.widget] == ["images/0.png", "images/1.png"]


@pytest.mark.parametrize(
    ("stated", "metadata", "text"),
    [
        ({"license": "mit"}, {"license": "mit"}, "mit"),
        (
            {"license": "other", "license_name": "sai-nc-community", "license_link": "https://x.y/LICENSE"},
            {"license": "other", "license_name": "sai-nc-community", "license_link": "https://x.y/LICENSE"},
            "other (sai-nc-community, https://x.y/LICENSE)",
        ),
        (
            {"license": "other", "license_name": "own", "license_link": "./LICENSE.md"},
            {"license": "other", "license_name": "own"}
            | {"license_link": "https://huggingface.co/org/base/blob/main/LICENSE.md"},
            "other (own, https://huggingface.co/org/base/blob/main/LICENSE.md)",
        ),
        ({"license": ["mit", "cc-by-4.0"]}, {"license": ["mit", "cc-by-4.0"]}, "mit, cc-by-4.0"),
        ({"license": ["mit"]}, {"license": "mit"}, "mit"),
    ],
)
def test_the_licence_of_the_base_is_stated_whole(stated, metadata, text):
    card = model_card(RECORD, PUBLISHED._replace(license=License.stated(stated, "org/base")))
    data = ModelCard(card.content).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == metadata
    assert f"| licence of the base model | {text} |" in card.text and card_errors(card.content, "model") == []


def test_a_base_without_a_licence():
    assert License.stated({}) is None and License.stated({"license": None}) is None
    assert License.stated({"license": "other", "license_link": "LICENSE"}).link is None, "a file that is not published"
    card = model_card(RECORD, PUBLISHED._replace(license=None))
    assert "| licence of the base model | not found; see the base model |" in card.text
    assert ModelCard(card.content).data.license == "other"


def test_several_prompt_sets_and_categories(tmp_path):
    """Rows within a category stay off the card; every set has its own."""
    sets = {"prompts": {"drawbench": {}, "/home/me/own.txt": {}}}
    rows = [
        row | {"prompts": prompts, "category": category, "mean": row["mean"] + shift}
        for shift, (prompts, category) in enumerate(
            [("drawbench", None), ("/home/me/own.txt", None), ("drawbench", "c")]
        )
        for row in RESULTS["rows"]
    ]
    content = RESULTS | {"settings": RESULTS["settings"] | sets, "rows": rows}
    results = results_of(content, tmp_path)
    assert [(row["prompts"], row["base_mean"], row["mean"]) for row in results.rows] == [
        ("drawbench", 20.5, 21.25),
        ("own.txt", 21.5, 22.25),
    ]
    card = model_card(RECORD, PUBLISHED, results)
    assert card_errors(card.content, "model") == [] and len(ModelCard(card.content).data.eval_results) == 4


@pytest.mark.parametrize(
    ("options", "rows", "method", "arxiv"),
    [
        ({"loss": "craft"}, "images", "[CRAFT]", "2603.18991"),
        ({"loss": "sft"}, "images", "supervised fine-tuning", None),
        ({"objective": "dpo"}, "pairs of images", "Diffusion-DPO", "2311.12908"),
        ({"objective": "kto"}, "labelled images", "Diffusion-KTO", "2404.04465"),
        ({"objective": "dspo"}, "pairs of images", "DSPO", None),
        ({"objective": "SmPO"}, "pairs of images", "SmPO-Diffusion", "2506.02698"),
        (
            {"objective": "RLHFSharpening", "generation_steps": 25},
            "prompts",
            "RLHF-Diffusion-Sharpening",
            "2502.12146",
        ),
        ({"objective": "RLHFSharpening", "generation_steps": 0}, "images", "RLHF-Diffusion-Sharpening", "2502.12146"),
        ({"objective": "mine"}, "images", "with the objective `mine`", None),
    ],
)
def test_the_card_is_that_of_the_method(options, rows, method, arxiv):
    """Runs with a preference objective have `--loss sft` by default, which is not what they did."""
    card = model_card(RECORD | {"options": RECORD["options"] | options}, PUBLISHED)
    assert method in card.text and f"fine-tuned on 97 {rows}." in card.text
    assert f"| {rows} | 97 |" in card.text and f"| {rows} in a step | 128 |" in card.text
    assert [tag for tag in card.data.tags if tag.startswith("arxiv:")] == ([f"arxiv:{arxiv}"] if arxiv else [])
    is_craft = options == {"loss": "craft"}
    assert ("craft" in card.data.tags) == ("2603.18991" in card.content) == is_craft
    assert ("supervised" in card.text) == (options == {"loss": "sft"})


def test_an_unknown_objective_is_not_passed_over(caplog):
    card = model_card(RECORD | {"options": RECORD["options"] | {"objective": "mine"}}, PUBLISHED)
    assert "No arXiv paper is known for `mine`." in card.text
    assert caplog.messages == ["objective 'mine': expected one of diffusers-craft; the card names no paper"]


def test_every_objective_of_the_package_has_its_place_on_the_card(caplog):
    for module in pkgutil.iter_modules(objectives.__path__, f"{objectives.__name__}."):
        importlib.import_module(module.name)
    kinds = subclasses(Objective)
    assert len(kinds) >= 9 and set(OBJECTIVES.values()) == {
        k for k in kinds if k.__module__.startswith("diffusers_craft")
    }
    for kind in OBJECTIVES.values():
        card = model_card(RECORD | {"options": RECORD["options"] | {"objective": kind.__name__}}, PUBLISHED)
        assert kind.title and kind.title in card.text and (kind.paper or "No arXiv paper is known for") in card.text
        source = kind.paper or ("weight-one case" if kind is SFT else "Zhu et al., ICLR 2025")
        assert source in sys.modules[kind.__module__].__doc__
    names = load_script(ROOT / "examples" / "preference" / "train_preference.py").OBJECTIVES
    assert names.items() <= OBJECTIVES.items(), "what --objective calls them is recorded"
    assert not caplog.messages


def subclasses(kind: type) -> set[type]:
    return {kind for below in kind.__subclasses__() for kind in (below, *subclasses(below))}


@pytest.mark.parametrize("kind", ["pipeline", "unet", "lora"])
def test_a_path_is_never_the_base_model(kind):
    card = model_card(RECORD, PUBLISHED._replace(kind=kind, base_id=None, dataset_id=None))
    data = card.data.to_dict()
    assert "base_model" not in data and "datasets" not in data and card_errors(card.content, "model") == []
    assert "`sd15`" in card.text and "top100 (not published)" in card.text
    assert "/home" not in card.content and "/data" not in card.content


def test_a_hub_id_is_not_a_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_hub_id("org/name") == "org/name"
    for name in ("name", "/org/name", "a/b/c", "outputs/", None, "./org"):
        assert as_hub_id(name) is None
    assert as_hub_id("org/name", {"org/name": "/where/it/was"}) is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert as_hub_id("org/name", {}) == "org/name", "no path to the run, whatever lies here now"
    assert as_hub_id("org/name") is None and published_id("org/name") is None
    (tmp_path / "org" / "name" / "craft_hub.json").write_text('{"repo_id": "org/there"}')
    assert published_id("org/name") == "org/there"


def test_paths_of_the_run_are_cut_wherever_it_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"models/mine": "/home/me/models/mine", "weights/hps.pt": "/home/me/weights/hps.pt"}
    own = {"model": "models/mine", "rewards": ["hps=weights/hps.pt", "a=/home/me/a.pt", "b=org/b"], "data": "org/data"}
    cut = {"model": "mine", "rewards": ["hps=hps.pt", "a=a.pt", "b=org/b"], "data": "org/data"}
    assert without_paths(own, paths) == cut
    (tmp_path / "org" / "data").mkdir(parents=True)
    assert without_paths(own, paths) == cut and without_paths(own)["data"] == "data"
    options = {"pretrained_model_name_or_path": "models/mine", "dataset_name": "outputs/top"}
    record = RECORD | {"options": RECORD["options"] | options, "paths": dict.fromkeys(options.values(), "/home")}
    content = model_card(record, PUBLISHED._replace(base_id=None, dataset_id=None)).content
    assert "`mine`" in content and "top (not published)" in content
    assert "models/mine" not in content and "outputs/top" not in content


def test_an_evaluation_of_relative_models_is_found_from_elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "outputs" / "craft"
    record = {"paths": {"outputs/craft": str(folder)}}
    (tmp_path / "craft_evaluate.json").write_text(json.dumps(record))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert read_results(tmp_path, folder, "org/other").rows[0]["mean"] == 21.25
    with pytest.raises(ValueError, match="expected an evaluation of .*, found one of craft in"):
        read_results(tmp_path, Path("outputs/craft"), "org/other")  # another folder, from here


def test_configurations_lose_the_path_they_came_from(tmp_path):
    for part, origin in (("unet", "/home/me/secret"), ("vae", "org/base")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_name_or_path": origin, "channels": 4}))
    index = {"_class_name": "P", "_name_or_path": "/home/me", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"safety_checker": [None, None]}))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.bin").write_bytes(b"large")
    files = model_files(tmp_path, "pipeline", "org/base")
    assert sorted(files) == ["model_index.json", "unet/config.json", "vae/config.json"]
    assert json.loads(files["unet/config.json"]) == {"_name_or_path": "org/base", "channels": 4}
    assert files["vae/config.json"] == tmp_path / "vae" / "config.json"
    assert "_name_or_path" not in json.loads(model_files(tmp_path, "unet")["config.json"])
    files = model_files(tmp_path, "pipeline", None, known=["org/other"])
    assert "_name_or_path" not in json.loads(files["vae/config.json"]), "no Hub id that the run was given"
    assert (
        model_files(tmp_path, "pipeline", None, known=["org/base"])["vae/config.json"] == tmp_path / "vae/config.json"
    )


def test_results_of_another_model_are_refused(tmp_path):
    assert results_of(RESULTS, tmp_path).grids == {"images/evaluation_grid.png": tmp_path / "grid.png"}
    with pytest.raises(
        ValueError, match="--evaluation_dir: expected an evaluation of /x, found one of outputs/craft in"
    ):
        read_results(tmp_path, Path("/x"), "org/other")
    with pytest.raises(ValueError, match="--evaluation_dir: expected the --output_dir of evaluate_craft.py, found no"):
        read_results(tmp_path / "no", Path("/x"), "org/other")


@pytest.mark.parametrize("name", ["grid_my prompts (v2)", "grid_a|b<c>"])
def test_addresses_of_pictures_hold_nothing_that_ends_them(name, tmp_path):
    """Evaluations of older versions have such files."""
    (tmp_path / f"{name}.png").write_bytes(b"picture")
    results = results_of(RESULTS, tmp_path)
    assert all(re.fullmatch(r"images/evaluation_grid[\w.-]*\.png", address) for address in results.grids)
    text = model_card(RECORD, PUBLISHED, results).text
    assert len(results.grids) == 2 and all(f"![base and tuned models]({address})" in text for address in results.grids)


def test_what_cannot_be_published_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the --output_dir of a finished training run, found no craft_run"):
        publish_model(tmp_path, "org/m")
    run = RECORD | {"options": RECORD["options"] | {"use_lora": True}}
    (tmp_path / "craft_run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="--push_unet_only: expected a run that trained the UNet, found one with"):
        publish_model(tmp_path, "org/m", unet_only=True)
    with pytest.raises(ValueError, match="--base_model: expected a Hub id ORG/NAME, found '/home/me'"):
        publish_model(tmp_path, "org/m", base_model="/home/me")
    with pytest.raises(ValueError, match="expected a finished training run, found no pytorch_lora_weights"):
        publish_model(tmp_path, "org/m")
    for name in ("a b/c", "org/a--b", "org/x.git", "-org/x", "a/b/c", "org/x..y", "org/" + 100 * "x"):
        with pytest.raises(ValueError, match="model '.*': expected ORG/NAME, found another form") as error:
            HubRepo(name, "model").open()
        assert "repeat the same command" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="model org/m: expected files to upload, found none in"):
        HubRepo("org/m", "model").upload(tmp_path, {}, "nothing", replaced=["last-checkpoint/*"])
    assert "secret" not in repr(HubRepo("org/m", "model", token="secret"))
