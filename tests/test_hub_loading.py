# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What is loaded from the Hub: what it refuses is said in one line, downloads show their bars, files are named."""

from pathlib import Path

import pytest
from hub_repos import File, Repo
from hub_server import HubServer
from safetensors.torch import save_file
from test_tuned_models import adapters

from diffusers_craft import load_pipeline


def put(hub: HubServer, name: str, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repos["model", name] = Repo(False)
    hub.repos["model", name].commit("main", {path: File(data, True) for path, data in files.items()}, "model")


# What loads from the Hub, by the repository that it asks for, and how its error begins.
LOADERS = {
    "model": ("load_pipeline('org/{}')", "org/{}", "model 'org/{}': "),
    "prompts": ("load_prompts('org/{}')", "org/{}", "--prompts: expected "),
    "benchmark": ("load_prompt_set('hpdv2')", "zhwang/HPDv2", "--prompts hpdv2: expected "),
    "training data": ("load_craft_dataset('org/{}')", "org/{}", "--dataset_name: expected "),
    "reward": ("load_reward('pickscore', 'org/{}')", "org/{}", "reward pickscore: needs "),
    "refiner": ("load_refiner('transformers', model='org/{}')", "org/{}", "--refiner_model: expected "),
}
NAMES = "load_craft_dataset, load_pipeline, load_prompt_set, load_prompts, load_refiner, load_reward"


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "a gated "),
        (401, {"X-Error-Code": "GatedRepo"}, "a gated "),
        (429, {}, "HTTP 429 of the Hub (too many requests"),
        (503, {}, "HTTP 503 of the Hub (the Hub fails"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, driver, loader, status, headers, words):
    code, repo, start = (text.format(f"base-{status}") for text in LOADERS[loader])
    for method in ("HEAD", "GET", "POST"):
        hub.fail(method, repo, status, times=999, **headers)
    code = f"from diffusers_craft import UserError, {NAMES}\ntry: {code}\nexcept UserError as error: print(error)"
    outcome = driver.execute(code)
    hub.faults.clear()
    said = outcome.output.splitlines()[-1]
    assert said.startswith(start) and words in said, outcome


def test_a_download_shows_its_bar_and_no_other_inside_it(hub, driver, random_sd15):
    put(hub, "org/whole", random_sd15)
    outcome = driver.execute("from diffusers_craft import load_pipeline; load_pipeline('org/whole', device='cpu')")
    assert outcome.code == 0 and "Fetching" in outcome.output and "Loading pipeline components" in outcome.output
    assert "Loading weights" not in outcome.output


def test_weights_of_the_hub_are_found_or_named(hub, driver, random_sd15, tmp_path):
    for repo, names in {"one": ["lora"], "two": ["step-1", "step-2"]}.items():
        (tmp_path / repo).mkdir()
        for name in names:
            save_file(adapters(random_sd15), tmp_path / repo / f"{name}.safetensors")
        put(hub, f"org/{repo}", tmp_path / repo)
    unet = load_pipeline(str(random_sd15), device="cpu").unet
    unet.conv_in.weight.data += 1
    unet.save_pretrained(tmp_path / "half" / "unet", variant="fp16")
    put(hub, "org/half", tmp_path / "half")
    code = "from diffusers_craft import load_pipeline, load_tuned_pipeline as load\n"
    code += f"base = load_pipeline({str(random_sd15)!r}, device='cpu').unet\n"
    for source, words in {
        "org/one": "found True",
        "org/two/step-2.safetensors": "found True",
        "org/half": "found True",
        "org/two": "expected one file of weights, or org/two/FILE, found step-1.safetensors, step-2.safetensors",
        "org/two/step-3.safetensors": "expected a .safetensors file here, or ORG/NAME/FILE of the Hub",
    }.items():
        tuned = f"load({source!r}, {str(random_sd15)!r}, device='cpu').unet"
        changed = "any((a != b).any().item() for a, b in zip(tuned.parameters(), base.parameters()))"
        outcome = driver.execute(f"{code}tuned = {tuned}\nprint('found', {changed})")
        assert words in outcome.output, (source, outcome)
