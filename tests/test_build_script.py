# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""build_craft_dataset.py as users run it: killed and restarted, shared by two ranks, re-filtered, refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from build_driver import load_script, register_brightness_rewards
from diffusers import AutoencoderKL, DiffusionPipeline
from original_layout import save_single_file
from safetensors.torch import load_file, save_file

import diffusers_craft.build.builder as builder_module
from diffusers_craft import load_craft_dataset, register_reward
from diffusers_craft.rewards import settings as registry
from diffusers_craft.scripts import run_script


DRIVER = Path(__file__).with_name("build_driver.py")
NUM_PROMPTS = 34  # 170 candidates: two shards of refined prompts, three of candidates and of scores
# One moment in each stage: work is done, and the file or folder that would hold it has no name yet.
KILLS = (
    "refined/part-00001.parquet",
    "candidates/part-00002.parquet",
    "scores/pickscore/part-00001.parquet",
    "scores/aesthetic/complete.json",
    "/dataset",
    "report/report.html",
    "craft_build.json",
)


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(NUM_PROMPTS)))
    return path


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take seconds, and most tests are about something else."""
    monkeypatch.setattr(builder_module, "write_build_report", lambda *args: None)


@pytest.fixture(autouse=True)
def brightness_rewards() -> None:
    register_brightness_rewards(register_reward)


def arguments(model: Path, prompts: Path | str, folder: Path, *more: str) -> list[str]:
    options = ["--pretrained_model_name_or_path", str(model), "--prompts", str(prompts), "--output_dir", str(folder)]
    options += ["--num_inference_steps", "1", "--guidance_scale", "2", "--generation_batch_size", "24"]
    return [*options, "--num_samples", "10", "--seed", "5", *more]


def test_categories_of_the_prompts_reach_the_build(random_sd15, tmp_path, script, monkeypatch) -> None:
    path, given = tmp_path / "prompts.csv", {}
    path.write_text("prompt,category\n" + "".join(f"thing {i},{'ab'[i % 2]}\n" for i in range(20)))

    def build(_, prompts, **options):
        given.update(dict(zip(prompts, options["categories"], strict=True)))
        raise KeyboardInterrupt

    monkeypatch.setattr(script.CRAFTDatasetBuilder, "build", build)
    with pytest.raises(KeyboardInterrupt):
        script.main(script.parse_args(arguments(random_sd15, path, tmp_path / "work", "--num_prompts", "12")))
    assert len(given) == 12 and all(kind == "ab"[int(prompt[6:]) % 2] for prompt, kind in given.items())


@pytest.fixture(scope="module")
def undisturbed(random_sd15: Path, prompt_file: Path, script: ModuleType, tmp_path_factory) -> Path:
    """The work folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
        register_brightness_rewards(register_reward)
        script.main(script.parse_args(arguments(random_sd15, prompt_file, folder)))
    return folder


def run_rounds(rounds: list[list[dict[str, Any]]]) -> list[list[int]]:
    """Exit codes of runs in processes of their own: one round after the other, a round's runs side by side."""
    path = os.pathsep.join([str(DRIVER.parents[1] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps(rounds),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    print(process.stderr[-3000:])  # pytest shows it if the test fails
    return json.loads(process.stdout)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_folder(found: Path, expected: Path) -> None:
    """Byte for byte; the run's record differs in the name and the path of its own folder."""
    found_files, expected_files = files(found), files(expected)
    assert sorted(found_files) == sorted(expected_files)
    records = [json.loads(content.pop("craft_build.json")) for content in (found_files, expected_files)]
    for record in records:
        del record["paths"][record["options"].pop("output_dir")]
    assert records[0] == records[1]
    assert [name for name in expected_files if found_files[name] != expected_files[name]] == []


@pytest.fixture(scope="module")
def disturbed(random_sd15: Path, prompt_file: Path, tmp_path_factory) -> tuple[dict[str, Path], list[list[int]]]:
    """The folder of a run killed in every stage and that of two ranks, made by one process for the sake of its imports."""
    folders = {name: tmp_path_factory.mktemp(name) / "work" for name in ("killed", "shared")}
    args = {name: arguments(random_sd15, prompt_file, folder) for name, folder in folders.items()}
    rounds = [[{"args": args["killed"], "kill_at": moment, "environment": {}}] for moment in (*KILLS, "")]
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    rounds.append([{"args": args["shared"], "kill_at": "", "environment": rank} for rank in ranks])
    return folders, run_rounds(rounds)


def test_killed_in_each_stage_and_restarted(undisturbed: Path, disturbed) -> None:
    """Each restart went on from where SIGKILL left the folder, until the next kill; the last one ended."""
    folders, codes = disturbed
    assert codes[:-1] == [[-signal.SIGKILL]] * len(KILLS) + [[0]]
    assert_same_folder(folders["killed"], undisturbed)


def test_two_ranks_share_the_work(undisturbed: Path, disturbed) -> None:
    folders, codes = disturbed
    assert codes[-1] == [0, 0]
    assert_same_folder(folders["shared"], undisturbed)


def test_a_restart_keeps_finished_shards(
    random_sd15: Path, prompt_file: Path, undisturbed: Path, tmp_path: Path, script: ModuleType
) -> None:
    folder = tmp_path / "work"
    for name, content in files(undisturbed).items():
        if not name.endswith(("candidates/part-00001.parquet", "candidates/complete.json")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    kept = folder / "candidates" / "part-00000.parquet"
    before = kept.stat().st_mtime_ns
    script.main(script.parse_args(arguments(random_sd15, prompt_file, folder)))
    assert kept.stat().st_mtime_ns == before
    assert_same_folder(folder, undisturbed)


@pytest.mark.usefixtures("no_report")
def test_filtering_again_neither_generates_nor_scores(
    random_sd15: Path, prompt_file: Path, undisturbed: Path, script: ModuleType, monkeypatch, capsys
) -> None:
    for name in ("generate_candidates", "score_images"):
        monkeypatch.setattr(builder_module, name, None)
    monkeypatch.setattr("diffusers_craft.prompts.refining.refine_prompts", None)
    before = {
        name: data for name, data in files(undisturbed).items() if name.startswith(("refined", "cand", "scores"))
    }
    records = []
    names = ["hps_v2.1", "aesthetic"]
    for more in (["--filter_rule", *names, "--selection", "all", "--rewards", *names], []):
        args = arguments(random_sd15, prompt_file, undisturbed, *more)
        script.main(script.parse_args(args))
        records.append(json.loads((undisturbed / "craft_build.json").read_text()))
    assert records[0]["options"]["filter_rule"] == names
    assert records[0]["composite_weights"] == {"hps_v2.1": 0.5, "aesthetic": 0.5}
    assert records[0]["funnel"]["selected"] == records[0]["funnel"]["kept_groups"] > 10
    assert records[1]["funnel"]["selected"] == 10
    assert before.items() <= files(undisturbed).items()
    assert f"candidate images{'170':>57}" in capsys.readouterr().out


@pytest.mark.usefixtures("no_report")
def test_the_larger_architecture_builds_too(
    random_sdxl: Path, prompt_file: Path, tmp_path: Path, script: ModuleType
) -> None:
    more = ["--num_prompts", "3", "--filter_rule", "none", "--num_samples", "2", "--save_latents"]
    script.main(script.parse_args([*arguments(random_sdxl, prompt_file, tmp_path / "work"), *more]))
    dataset = load_craft_dataset(tmp_path / "work")
    assert len(dataset) == 2 and dataset.features["latent"].shape == (4, 8, 8)


def error_of(script: ModuleType, args: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run_script(script.main, script.parse_args(args))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0].partition("error: ")[2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rewards", "beauty=1"], "--rewards: expected one of hps_v2.1, pickscore, aesthetic"),
        (["--rewards", "pickscore=-1"], "--rewards: expected weights of at least 0, found 'pickscore=-1'"),
        (["--reward_checkpoint", "mps=x"], "--reward_checkpoint: expected NAME=VALUE, with a NAME of hps_v2.1,"),
        (["--reward_checkpoint", "pickscore"], "--reward_checkpoint: expected NAME=VALUE, with a NAME of hps_v2.1,"),
        (["--filter_rule", "xyz"], "--filter_rule: expected one of h, p, a, ha, pa, hpa, none or"),
        (["--selection", "best"], "--selection: expected one of top, random, low, all, found 'best'"),
        (["--reward_normalization", "l2"], "--reward_normalization: expected one of zscore, minmax, rank, found 'l2'"),
        (["--num_samples", "35"], "--num_samples: expected at most 34 (34 prompts, 1 images of a prompt), found 35"),
        (["--num_prompts", "35"], "--num_prompts: expected 1 to 34"),
        (["--prompts", "missing.txt"], "--prompts: expected a file"),
        (["--refiner", "openai"], "--refiner_model: expected the name of a model with --refiner openai, found none"),
        (["--generation_batch_size", "0"], "--generation_batch_size: expected 1 to 64, found 0"),
        (["--pretrained_model_name_or_path", "./nowhere"], "model './nowhere': expected a diffusers pipeline folder"),
        (["--push_to_hub"], "--push_to_hub: expected --hub_dataset_id ORG/NAME with it, found none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    random_sd15: Path, prompt_file: Path, tmp_path: Path, script: ModuleType, capsys, more: list[str], message: str
) -> None:
    folder = tmp_path / "work"
    assert error_of(script, arguments(random_sd15, prompt_file, folder, *more), capsys).startswith(message)
    assert not folder.exists()


def test_an_empty_prompt_file_is_refused(random_sd15: Path, tmp_path: Path, script: ModuleType, capsys) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    message = error_of(script, arguments(random_sd15, empty, tmp_path / "work"), capsys)
    assert message == f"--prompts: expected at least one prompt in {empty}, found none"


def test_a_folder_built_with_other_options_is_refused(
    random_sd15: Path, prompt_file: Path, undisturbed: Path, script: ModuleType, capsys
) -> None:
    more = ["--guidance_scale", "5", "--num_inference_steps", "2"]
    before = files(undisturbed)
    message = error_of(script, arguments(random_sd15, prompt_file, undisturbed, *more), capsys)
    assert message == (
        f"work folder {undisturbed}: stage 'candidates' was built with other options: --num_inference_steps"
        " (1 there, 2 now), --guidance_scale (2.0 there, 5.0 now); use another --output_dir or remove it"
    )
    assert files(undisturbed) == before


@pytest.mark.usefixtures("no_report")
def test_an_unreachable_refiner_ends_the_build_before_an_image_is_drawn(
    random_sd15: Path, prompt_file: Path, tmp_path: Path, script: ModuleType, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("diffusers_craft.core.chat.RETRY_SECONDS", 0.0)
    more = ["--refiner", "openai", "--refiner_model", "m", "--refiner_base_url", "http://127.0.0.1:9/v1"]
    more += ["--num_prompts", "3", "--filter_rule", "none", "--num_samples", "2"]
    message = error_of(script, arguments(random_sd15, prompt_file, tmp_path / "work", *more), capsys)
    assert message.startswith("--refiner openai: expected refinements of the prompts, found none of 12")
    assert not list((tmp_path / "work").rglob("candidates/*.parquet"))


@pytest.mark.usefixtures("no_report")
def test_another_vae_draws_other_pictures(random_sd15, prompt_file, tmp_path, script, capsys) -> None:
    vae = AutoencoderKL.from_pretrained(random_sd15 / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 0.5
    vae.save_pretrained(tmp_path / "vae")
    more = ["--num_prompts", "2", "--filter_rule", "none", "--num_samples", "2"]
    pictures = []
    for name, flags in (("own", []), ("other", [f"--pretrained_vae_model_name_or_path={tmp_path / 'vae'}"])):
        script.main(script.parse_args([*arguments(random_sd15, prompt_file, tmp_path / name), *more, *flags]))
        pictures.append({row["seed"]: row["image"].tobytes() for row in load_craft_dataset(tmp_path / name)})
    shared = pictures[0].keys() & pictures[1].keys()
    assert shared and all(pictures[0][seed] != pictures[1][seed] for seed in shared)
    flags = ["--pretrained_vae_model_name_or_path", str(tmp_path / "nothing")]
    message = error_of(script, arguments(random_sd15, prompt_file, tmp_path / "work", *flags), capsys)
    assert message.startswith("--pretrained_vae_model_name_or_path: expected a Hub id or folder of a VAE")


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_single_file_without_a_vae_builds_with_one(kind, request, prompt_file, tmp_path, script, capsys) -> None:
    folder, file = request.getfixturevalue(f"random_{kind}"), tmp_path / f"{kind}.safetensors"
    save_single_file(DiffusionPipeline.from_pretrained(folder), file)
    save_file({key: value for key, value in load_file(file).items() if not key.startswith("first_stage_model.")}, file)
    args = [*arguments(file, prompt_file, tmp_path / "work"), "--single_file_config", str(folder)]
    args += ["--num_prompts", "2", "--filter_rule", "none", "--num_samples", "1"]
    assert error_of(script, args, capsys).startswith("--pretrained_vae_model_name_or_path: expected a VAE")
    script.main(script.parse_args([*args, "--pretrained_vae_model_name_or_path", str(folder / "vae")]))
    assert len(load_craft_dataset(tmp_path / "work")) == 1


@pytest.mark.usefixtures("no_report")
def test_the_repository_is_opened_before_the_work(random_sd15, prompt_file, tmp_path, script, monkeypatch) -> None:
    work, calls = tmp_path / "work", []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(script.HubRepo, "open", lambda repo: calls.append((repo, work.exists())))
    monkeypatch.setattr(builder_module, "publish_dataset", lambda *args: calls.append(args))
    more = ["--num_prompts", "2", "--filter_rule", "none", "--num_samples", "1", "--push_to_hub"]
    more += ["--hub_dataset_id", "org/set", "--hub_private_repo", "--hub_revision", "v2", "--hub_license", "mit"]
    script.main(script.parse_args(arguments(random_sd15, prompt_file, work, *more)))
    assert calls[0] == (script.HubRepo("org/set", "dataset", private=True, revision="v2", license="mit"), False)
    assert calls[1:] == [(str(work), "org/set", True, None, "v2", "mit")]
    assert not any(b"hf_secret" in data for data in files(work).values())
