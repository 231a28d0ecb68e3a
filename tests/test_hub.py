# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishing against the local Hub: what arrives, what a user sees when it fails, and that a second run goes on."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from build_driver import REWARDS, BrightnessReward
from hub_repos import File, Repo
from hub_server import TOKEN, HubServer
from huggingface_hub import DatasetCard, ModelCard


STEPS = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=3", "--resolution=64"]
STEPS += ["--report_to=none", "--learning_rate=1e-3"]
BASE_CARD = "---\nlicense: other\nlicense_name: sai-nc-community\nlicense_link: LICENSE.md\n---\n# Base\n"
BASE_LICENSE = "other (sai-nc-community, https://huggingface.co/org/base/blob/main/LICENSE.md)"
MAIN_FILE = {"dataset": "dataset/train-*.parquet", "model": "unet/*.safetensors"}  # FILE below is its hash
# What to let fail, how often (the clients try an upload several times), and what the user reads.
FAULTS = [
    ("POST", "/repos/create", 401, 1, "no valid token (401); set HF_TOKEN or log in with `hf auth login`"),
    ("POST", "/repos/create", 403, 1, "a name or an organisation that this token may not write to (403)"),
    ("POST", "/preupload/", 402, 1, "the quota of the account used up (402)"),
    ("POST", "objects/batch", 429, 999, "too many requests (429); wait before trying again"),
    ("PUT", "/upload/FILE", 500, 999, "500"),
    ("PUT", "/upload/FILE", None, 999, "a connection that failed"),
    ("POST", "/commit/", 409, 1, "a conflict with another push or an existing name (409)"),
]


@pytest.fixture(scope="module")
def built(random_sd15, tmp_path_factory) -> Path:
    """The work folder of a finished build."""
    from diffusers_craft import CRAFTDatasetBuilder, GenerationSettings, load_pipeline

    folder = tmp_path_factory.mktemp("built")
    builder = CRAFTDatasetBuilder(
        load_pipeline(str(random_sd15), device="cpu"),
        dict(zip(REWARDS, (0.4, 0.4, 0.2))),
        settings=GenerationSettings(num_inference_steps=1, guidance_scale=2.0, batch_size=16),
        reward_models={name: BrightnessReward(name) for name in REWARDS},
        num_samples=4,
        output_dir=folder,
    )
    builder.build([f"thing {index}" for index in range(12)])
    return folder


@pytest.fixture(scope="module")
def base(driver, random_sd15) -> str:
    """The Hub id of a base model with a licence."""
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("org/base")
api.upload_folder(repo_id="org/base", folder_path={str(random_sd15)!r})
api.upload_file(repo_id="org/base", path_in_repo="README.md", path_or_fileobj={BASE_CARD.encode()!r})
"""
    assert driver.execute(code).code == 0
    return "org/base"


@pytest.fixture(scope="module")
def trained(driver, base, dataset_folder, tmp_path_factory):
    """`trained("lora", ...)`: a finished run from the Hub's base, made once for each set of flags."""
    runs: dict[tuple[str, ...], Path] = {}

    def train(*flags: str) -> Path:
        if flags not in runs:
            folder = tmp_path_factory.mktemp("runs") / "run"
            where = [f"--pretrained_model_name_or_path={base}", f"--dataset_name={dataset_folder}"]
            outcome = driver.run("train_craft_sd15", *where, f"--output_dir={folder}", *STEPS, *flags)
            assert outcome.code == 0, outcome.output
            runs[flags] = folder
        return runs[flags]

    return train


@pytest.fixture(scope="module")
def published_run(driver, trained) -> Path:
    """A finished run whose pictures are drawn."""
    folder = trained()
    outcome = driver.run("publish_craft", "--output_dir", folder, "--hub_model_id=org/other")
    assert outcome.code == 0, outcome.output
    return folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def files_on(hub: HubServer, kind: str, repo_id: str) -> dict[str, bytes]:
    return {path: file.data for path, file in hub.repos[kind, repo_id].files.items() if path != ".gitattributes"}


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every file."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_arrives_with_its_scores_and_card(hub, driver, built, tmp_path):
    outcome = driver.run("publish_craft", "--output_dir", built, "--hub_dataset_id=org/top4", "--hub_license=mit")
    assert outcome.code == 0, outcome.output
    files = files_on(hub, "dataset", "org/top4")
    assert sorted(files) == [
        "README.md",
        "data/train-00000-of-00001.parquet",
        "images/funnel.png",
        "images/gallery.png",
        "images/rewards.png",
        "scores/train-00000-of-00001.parquet",
    ]
    code = f"""
from datasets import load_dataset
selected = load_dataset("org/top4", split="train", cache_dir={str(tmp_path)!r})
scores = load_dataset("org/top4", "scores", split="train", cache_dir={str(tmp_path)!r})
streamed = list(load_dataset("org/top4", split="train", streaming=True))
assert selected[0]["image"].size == (64, 64) and selected[0]["image"].tobytes() == streamed[0]["image"].tobytes()
assert len(selected) == len(streamed) == 4 and len(scores) == 60 and "image" not in scores.column_names
marked = scores.filter(lambda row: row["selected"])
key = lambda row: (row["group"], row["variant"])
for ours, theirs in zip(sorted(selected, key=key), sorted(marked, key=key)):
    assert all(ours[name] == theirs[name] for name in ours if name != "image"), (ours, theirs)
print({{name: feature.dtype for name, feature in scores.features.items()}})
"""
    outcome = driver.execute(code)
    assert outcome.code == 0, outcome.output
    assert "'hps_v2.1': 'float32'" in outcome.output and "'seed': 'int64'" in outcome.output


def test_a_dataset_card_says_what_the_run_wrote(hub, driver, built):
    driver.run("publish_craft", "--output_dir", built, "--hub_dataset_id=org/top4", "--hub_license=mit")
    card = DatasetCard(files_on(hub, "dataset", "org/top4")["README.md"].decode())
    record = json.loads((built / "craft_build.json").read_text())
    constants = json.loads((built / "normalization.json").read_text())["rewards"]
    assert card.data.license == "mit" and card.data.task_categories == ["text-to-image"]
    assert [config["config_name"] for config in card.data.configs if config.get("default")] == ["default"]
    for label, key in (("candidate images", "candidates"), ("groups kept by the filter", "kept_groups")):
        assert f"| {label} | {record['funnel'][key]} |" in card.text
    for name, weight in record["composite_weights"].items():
        numbers = f"mean {constants[name]['mean']:.8g}, std {constants[name]['std']:.8g}"
        assert f"| `{name}` | {weight:g} | {numbers}" in card.text
        assert f"checkpoint {record['reward_sources'][name]['checkpoint']}" in card.text
    for text in (
        "| filter rule | hpa |",
        "| guidance scale | 2.0 |",
        "2603.18991",
        record["stage_options"]["prompts"],
    ):
        assert text in card.text
    assert str(built) not in card.content and str(Path(built).parent) not in card.content


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[1].strip('/')}-{fault[2]}")
@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_failed_upload_says_why_and_goes_on(hub, driver, built, published_run, kind, fault, tmp_path):
    method, path, status, times, message = fault
    folder = copy_of(built if kind == "dataset" else published_run, tmp_path)
    repo_id = f"org/{kind}-{path.strip('/').replace('/', '-')}-{status}"
    command = ["publish_craft", "--output_dir", folder, f"--hub_{kind}_id={repo_id}"]
    before = snapshot(folder)
    hub.blobs.clear()
    main_file = hashlib.sha256(next(folder.glob(MAIN_FILE[kind])).read_bytes()).hexdigest()
    hub.fail(method, path.replace("FILE", main_file), status, times)
    failed = driver.run(*command)
    hub.faults.clear()
    assert failed.code == 2 and len(failed.output.strip().splitlines()[-1:]) == 1, failed.output
    line = failed.output.strip().splitlines()[-1]
    assert line.startswith(f"error: {kind} {repo_id}: expected ") and message in line, line
    assert "all files are kept; repeat the same command to go on" in line
    assert snapshot(folder) == before

    arrived, sent = set(hub.blobs), len(hub.requests)
    completed = driver.run(*command)
    assert completed.code == 0, completed.output
    again = [r.path for r in hub.requests[sent:] if r.method == "PUT" and r.path.split("/")[2] in arrived]
    assert not again, "what the Hub had was sent again"
    if path in ("/commit/", "/upload/FILE"):
        assert arrived == set(hub.blobs) - ({main_file} if "FILE" in path else set()), "the rest had arrived"
    assert "README.md" in hub.repos[kind, repo_id].files
    changed = {path.name for path, state in snapshot(folder).items() if before.get(path) != state}
    assert changed == {"craft_hub.json"}


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_without_a_token_nothing_is_started(driver, random_sd15, dataset_folder, tmp_path, token):
    """Neither hours of generation nor of training come before the refusal."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a thing\n")
    common = [f"--pretrained_model_name_or_path={random_sd15}", f"--output_dir={tmp_path / 'out'}", "--push_to_hub"]
    for script, flags in (
        ("build_craft_dataset", ["--hub_dataset_id=org/set", f"--prompts={prompts}"]),
        ("train_craft_sd15", ["--hub_model_id=org/model", f"--dataset_name={dataset_folder}", *STEPS]),
    ):
        outcome = driver.run(script, *common, *flags, HF_TOKEN=token)
        assert outcome.code == 2 and "no valid token (401)" in outcome.output.splitlines()[-1], outcome.output
    assert not list(tmp_path.rglob("craft_*.json")) and not (tmp_path / "out" / "candidates").exists()


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--hub_license=Apache 2.0"], "--hub_license: expected an identifier such as openrail++"),
        (["--hub_license=mit: x"], "--hub_license: expected an identifier such as openrail++"),
        (["--hub_dataset_id=org/a--b"], "dataset 'org/a--b': expected ORG/NAME, found another form"),
        (["--hub_dataset_id=org/x.git"], "dataset 'org/x.git': expected ORG/NAME, found another form"),
    ],
)
def test_a_wrong_licence_or_id_is_refused_before_the_work(hub, driver, random_sd15, built, tmp_path, flags, found):
    """Repeating the command cannot help, so nobody is told to."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a thing\n")
    flags = ["--hub_dataset_id=org/unlicensed", *flags]
    build = [f"--pretrained_model_name_or_path={random_sd15}", f"--prompts={prompts}", "--push_to_hub"]
    build += [f"--output_dir={tmp_path / 'out'}"]
    for command in (["build_craft_dataset", *build], ["publish_craft", "--output_dir", built]):
        outcome = driver.run(*command, *flags)
        line = outcome.output.splitlines()[-1]
        assert outcome.code == 2 and line.startswith(f"error: {found}") and "repeat" not in line, outcome.output
    assert not (tmp_path / "out").exists() and ("dataset", "org/unlicensed") not in hub.repos


def test_a_wrong_licence_of_a_model_is_refused(driver, published_run):
    command = ["publish_craft", "--output_dir", published_run, "--hub_model_id=org/unlicensed", "--hub_license=MIT 2"]
    assert "--hub_license: expected an identifier" in driver.run(*command).output


def test_licences_of_prompts_as_a_list(hub, driver, built, tmp_path):
    card = b"---\nlicense:\n- mit\n- cc-by-4.0\n---\n"
    hub.repos["dataset", "org/listed"] = Repo(False)
    hub.repos["dataset", "org/listed"].commit("main", {"README.md": File(card, False)}, "card")
    folder = copy_of(built, tmp_path)
    record = json.loads((folder / "craft_build.json").read_text())
    record["options"]["prompts"] = "org/listed:large:train"
    (folder / "craft_build.json").write_text(json.dumps(record))
    assert driver.run("publish_craft", "--output_dir", folder, "--hub_dataset_id=org/from-listed").code == 0
    text = files_on(hub, "dataset", "org/from-listed")["README.md"].decode()
    assert "| licence of the prompts | mit, cc-by-4.0 |" in text


@pytest.mark.parametrize(
    ("change", "refiner"),
    [
        ({}, "template: 4 refinements of each prompt asked for, 1 image(s) of each; refined 48 of 48 candidates"),
        (
            {"refined": 11},
            "template: 4 refinements of each prompt asked for, 1 image(s) of each; refined 11 of 48 cand",
        ),
        ({"refined": None}, "template: 4 refinements of each prompt asked for, 1 image(s) of each |"),
        ({"refiner": "none"}, "none; 4 images of each prompt by other seeds |"),
    ],
)
def test_a_card_claims_no_refinements_that_did_not_happen(hub, driver, built, tmp_path, change, refiner):
    folder = copy_of(built, tmp_path)
    record = json.loads((folder / "craft_build.json").read_text())
    record["options"]["refiner"] = change.get("refiner", "template")
    record["funnel"]["refined"] = change.get("refined", 48)
    if change.get("refined", 48) is None:  # a build of an earlier version
        del record["funnel"]["refined"], record["funnel"]["refinements"]
    (folder / "craft_build.json").write_text(json.dumps(record))
    assert driver.run("publish_craft", "--output_dir", folder, "--hub_dataset_id=org/refined").code == 0
    assert f"| refiner | {refiner}" in files_on(hub, "dataset", "org/refined")["README.md"].decode()


def test_a_public_repository_is_not_taken_for_a_private_one(driver, built):
    command = ["publish_craft", "--output_dir", built, "--hub_dataset_id=org/open"]
    assert driver.run(*command).code == 0
    outcome = driver.run(*command, "--hub_private_repo")
    assert outcome.code == 2 and "a public repository of that name, though a private one is wanted" in outcome.output


def test_a_trained_pipeline_arrives_with_pictures_and_card(hub, driver, trained, base, dataset_folder):
    folder = trained("--push_to_hub", "--hub_model_id=org/tuned", "--hub_private_repo")
    files = files_on(hub, "model", "org/tuned")
    assert hub.repos["model", "org/tuned"].private
    assert files["unet/diffusion_pytorch_model.safetensors"] == next(folder.glob("unet/*.safetensors")).read_bytes()
    assert not [path for path in files if path.startswith(("checkpoint", "logs", "samples"))]
    card, record = ModelCard(files["README.md"].decode()), json.loads((folder / "craft_run.json").read_text())
    assert (card.data.base_model, card.data.base_model_relation) == (base, "finetune")
    assert (card.data.license, card.data.license_name, card.data.pipeline_tag) == (
        "other",
        "sai-nc-community",
        "text-to-image",
    )
    assert f"| licence of the base model | {BASE_LICENSE} |" in card.text
    assert {"craft", "stable-diffusion", "diffusers-training"} <= set(card.data.tags)
    assert [entry["text"] for entry in card.data.widget] == record["captions"] == [f"thing {i}" for i in range(4)]
    assert all(entry["output"]["url"] in files for entry in card.data.widget) and "images/grid.png" in files
    history = record["loss_history"]
    assert f"| {history[0]['train_loss']:.4g}, {history[-1]['train_loss']:.4g} |" in card.text
    assert f"| device hours | {record['speed']['device_hours']:.3g} |" in card.text
    assert "| `--learning_rate` | 0.001 |" in card.text and "| images | 10 |" in card.text
    assert "Not evaluated yet." in card.text and "reward hacking" in card.text


@pytest.mark.parametrize("kind", ["pipeline", "unet", "lora"])
def test_what_arrives_draws_what_was_trained(hub, driver, trained, kind, tmp_path):
    """The snippet of the card runs, and its picture is the one that the files at hand draw."""
    folder = trained(*(["--use_lora", "--learning_rate=1e-2"] if kind == "lora" else []))
    flags = ["--push_unet_only"] if kind == "unet" else []
    outcome = driver.run("publish_craft", "--output_dir", folder, f"--hub_model_id=org/{kind}", *flags)
    assert outcome.code == 0, outcome.output
    files = files_on(hub, "model", f"org/{kind}")
    assert ("model_index.json" in files) == (kind == "pipeline")
    snippet = files["README.md"].decode().split("```python\n")[1].split("```")[0]
    setup = snippet[: snippet.index("image = ")]
    code = f"""
import torch
from diffusers_craft import load_tuned_pipeline
{setup}
def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(5)
    return pipeline("thing 1", height=64, width=64, num_inference_steps=3, generator=noise).images[0].tobytes()
base = DiffusionPipeline.from_pretrained("org/base")
tuned = load_tuned_pipeline({str(folder)!r}, "org/base", fuse=False)
assert draw(pipeline) == draw(tuned) != draw(base)
assert draw(load_tuned_pipeline("org/{kind}", "org/base", fuse=False)) == draw(pipeline)
"""
    outcome = driver.execute(code)
    assert outcome.code == 0, outcome.output


def test_checkpoints_go_to_the_hub_while_training(hub, driver, base, dataset_folder, tmp_path):
    """Another machine can resume from them; one that fails does not stop the run; the end replaces them."""
    hub.fail("POST", "/model/org/ongoing/commit|org/ongoing/preupload", 409)
    where = [f"--pretrained_model_name_or_path={base}", f"--dataset_name={dataset_folder}", *STEPS]
    flags = ["--push_to_hub", "--hub_model_id=org/ongoing", "--hub_strategy=checkpoint", "--checkpointing_steps=1"]
    outcome = driver.run("train_craft_sd15", *where, f"--output_dir={tmp_path / 'one'}", *flags)
    assert outcome.code == 0, outcome.output
    assert "checkpoint-1 was not published: model org/ongoing: expected to upload" in outcome.output
    repo = hub.repos["model", "org/ongoing"]
    assert repo.messages == ["initial commit", "checkpoint-2", "checkpoint-3", "End of training"]
    assert not [path for path in repo.files if path.startswith("last-checkpoint")]

    second = list(repo.commits.values())[2]
    assert "last-checkpoint/training_state.json" in second
    for path, file in second.items():
        target = tmp_path / "two" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
    resume = f"--resume_from_checkpoint={tmp_path / 'two' / 'last-checkpoint'}"
    outcome = driver.run("train_craft_sd15", *where, f"--output_dir={tmp_path / 'two'}", resume)
    assert outcome.code == 0, outcome.output
    unets = [next((tmp_path / name / "unet").glob("*.safetensors")).read_bytes() for name in ("one", "two")]
    assert unets[0] == unets[1]


def test_a_run_whose_upload_fails_is_published_without_training_again(hub, driver, base, dataset_folder, tmp_path):
    hub.fail("POST", "org/unlucky/commit", 403)
    folder = tmp_path / "run"
    where = [f"--pretrained_model_name_or_path={base}", f"--dataset_name={dataset_folder}", f"--output_dir={folder}"]
    flags = ["--push_to_hub", "--hub_model_id=org/unlucky", "--push_unet_only"]
    outcome = driver.run("train_craft_sd15", *where, *STEPS, *flags)
    line, before = outcome.output.strip().splitlines()[-1], snapshot(folder)
    assert outcome.code == 2 and "found a name or an organisation that this token may not write to (403)" in line
    command = line.split("`python ")[1].split("`")[0].split()
    outcome = driver.run(command[0].removesuffix(".py"), *command[1:])
    assert outcome.code == 0, outcome.output
    files = files_on(hub, "model", "org/unlucky")
    assert "config.json" in files and "model_index.json" not in files, "the UNet alone was asked for"
    assert {path.name for path, state in snapshot(folder).items() if before.get(path) != state} == {"craft_hub.json"}


def test_the_card_links_a_local_dataset_that_was_published(hub, driver, base, dataset_folder, tmp_path):
    data, folder = copy_of(dataset_folder, tmp_path), tmp_path / "run"
    (data / "craft_hub.json").write_text(json.dumps({"repo_id": "org/top100"}))
    where = [f"--pretrained_model_name_or_path={base}", f"--dataset_name={data}", f"--output_dir={folder}"]
    outcome = driver.run("train_craft_sd15", *where, *STEPS, "--push_to_hub", "--hub_model_id=org/linked")
    assert outcome.code == 0, outcome.output
    card = ModelCard(files_on(hub, "model", "org/linked")["README.md"].decode())
    assert card.data.datasets == ["org/top100"] and "https://huggingface.co/datasets/org/top100" in card.text


def test_relative_paths_are_no_hub_ids_wherever_a_run_is_published(hub, driver, random_sd15, dataset_folder, tmp_path):
    """Neither on the card, nor in configurations, nor in a question for the licence of a stranger's repository."""
    shutil.copytree(random_sd15, tmp_path / "models" / "mine")
    shutil.copytree(dataset_folder, tmp_path / "outputs" / "top")
    (tmp_path / "elsewhere").mkdir()
    where = ["--pretrained_model_name_or_path=models/mine", "--dataset_name=outputs/top", "--output_dir=outputs/tuned"]
    outcome = driver.run("train_craft_sd15", *where, *STEPS, "--cache_dir=outputs/cache", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    before = len(hub.requests)
    command = ["publish_craft", "--output_dir=../outputs/tuned", "--hub_model_id=org/relative"]
    outcome = driver.run(*command, folder=tmp_path / "elsewhere")
    assert outcome.code == 0, outcome.output
    files = files_on(hub, "model", "org/relative")
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert "base_model" not in data and "datasets" not in data
    asked = [request.path for request in hub.requests[before:]]
    assert asked and not [path for path in asked if "models/mine" in path or "outputs/top" in path]
    index, record = (json.loads(files[name]) for name in ("model_index.json", "craft_run.json"))
    assert "_name_or_path" not in index and "paths" not in record
    assert record["options"]["pretrained_model_name_or_path"] == "mine" and record["options"]["dataset_name"] == "top"
    for path, content in files.items():
        for name in (b"models/mine", b"outputs/", str(tmp_path).encode()):
            assert name not in content, (path, name)

    (tmp_path / "outputs/top/craft_hub.json").write_text(json.dumps({"repo_id": "org/top100"}))
    assert driver.run(*command, folder=tmp_path / "elsewhere").code == 0
    card = ModelCard(files_on(hub, "model", "org/relative")["README.md"].decode())
    assert card.data.datasets == ["org/top100"], "published since, and found from here"


def test_a_relative_prompt_file_is_no_hub_dataset(hub, driver, built, tmp_path):
    folder = copy_of(built, tmp_path)
    record = json.loads((folder / "craft_build.json").read_text())
    record["options"]["prompts"], record["paths"] = (
        "data/prompts.txt",
        {"data/prompts.txt": "/home/me/data/prompts.txt"},
    )
    (folder / "craft_build.json").write_text(json.dumps(record))
    before = len(hub.requests)
    outcome = driver.run("publish_craft", "--output_dir", folder, "--hub_dataset_id=org/own-prompts")
    assert outcome.code == 0, outcome.output
    assert not [request.path for request in hub.requests[before:] if "data/prompts.txt" in request.path]
    card = files_on(hub, "dataset", "org/own-prompts")["README.md"].decode()
    assert "| prompts | prompts.txt; " in card and "data/prompts" not in card


def test_another_kind_of_model_replaces_the_one_that_was_there(hub, driver, trained):
    lora, command = trained("--use_lora", "--learning_rate=1e-2"), ["publish_craft", "--hub_model_id=org/kinds"]
    found = []
    for flags in (
        ["--output_dir", trained()],
        ["--output_dir", lora],
        ["--output_dir", trained(), "--push_unet_only"],
    ):
        outcome = driver.run(*command, *flags)
        assert outcome.code == 0, outcome.output
        names = ("model_index.json", "pytorch_lora_weights.safetensors", "config.json")
        found += [[name in files_on(hub, "model", "org/kinds") for name in names]]
    assert found == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_checkpoint_without_files_leaves_the_last_one_on_the_hub(hub, driver, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "training_state.json").write_text("{}")
    code = f"""
from pathlib import Path
from diffusers_craft import TrainingSettings
from diffusers_craft.training.log import TrainingHub
where = dict(pretrained_model_name_or_path="m", dataset_name="d", output_dir={str(tmp_path)!r})
settings = TrainingSettings(**where, push_to_hub=True, hub_model_id="org/emptied", hub_strategy="checkpoint")
run = TrainingHub(settings, dict(), is_main=True)
for name in ("checkpoint-1", "checkpoint-2"):
    run.push_checkpoint(Path(settings.output_dir) / name)
"""
    outcome = driver.execute(code)
    assert outcome.code == 0, outcome.output
    assert "checkpoint-2 was not published: model org/emptied: expected files to upload, found none" in outcome.output
    assert "last-checkpoint/training_state.json" in files_on(hub, "model", "org/emptied")


def test_no_token_and_no_path_is_written_or_sent(hub, driver, built, trained, random_sd15, tmp_path_factory):
    """Everything that the tests of this module wrote, printed and sent, but for the header that authorises."""
    trained("--push_to_hub", "--hub_model_id=org/tuned", "--hub_private_repo")
    driver.run("publish_craft", "--output_dir", built, "--hub_dataset_id=org/top4")
    root = str(tmp_path_factory.getbasetemp())
    assert len(hub.requests) > 10 and any(TOKEN in r.headers.get("authorization", "") for r in hub.requests)
    for request in hub.requests:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        sent = [request.path, json.dumps(request.query), json.dumps(headers)]
        assert TOKEN not in "".join(sent) and TOKEN.encode() not in request.body, request.path
    for (kind, repo_id), repo in hub.repos.items():
        for path, file in repo.files.items():
            assert TOKEN.encode() not in file.data and root.encode() not in file.data, (kind, repo_id, path)
    assert not any(TOKEN in output for output in driver.outputs)
    written = [path for path in Path(root).rglob("*") if path.is_file()]
    assert len(written) > 50 and not [path for path in written if TOKEN.encode() in path.read_bytes()]
