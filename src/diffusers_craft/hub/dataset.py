# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishes a finished work folder as a dataset that plain `load_dataset` reads: Parquet, pictures and a card.

Every number on the card is read from the files of the build.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from ..core.files import read_json
from ..core.workdir import BUILD_FILE, CONSTANTS_FILE, DATASET_FOLDER, SCORED_FILE
from ..errors import UserError
from ..selection.pool import funnel_rows
from ..tiny import PROMPTS
from .card import ARXIV, CITATION, PAPER, License, link, table, versions_text, without_paths
from .upload import Files, HubRepo, as_hub_id, hub_license


PICTURES = ("funnel.png", "rewards.png", "gallery.png")
_NEEDED = (SCORED_FILE, BUILD_FILE, CONSTANTS_FILE, *(f"report/{name}" for name in PICTURES))
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMNS = {
    "image": "the picture, RGB",
    "row": "position in the list of candidates, from 0",
    "group": "index of the prompt, from 0",
    "variant": "index within the group; 0 is the image of the original prompt",
    "prompt": "the original prompt: scored against, and what training conditions on",
    "refined_prompt": "the text that generated the image",
    "seed": "seed of the initial noise",
    "valid": "false for a black, constant or NaN image, which is never selected",
    "problem": "why an image is not valid, else null",
    "sampler": "scheduler class and its key settings",
    "num_inference_steps": "denoising steps",
    "guidance_scale": "classifier-free guidance; 1 is none",
    "reward": "composite reward: weighted sum of the normalised raw scores, no unit",
    "advantage": "(reward - mean) / standard deviation over the refined images of the complete group",
    "kept": "whether the filter rule keeps the image",
    "selected": "whether the image is in the default configuration",
    "latent": "generated latent (channels, height, width), in the UNet's scale",
    "latent_vae": "fingerprint of the VAE that `latent` belongs to",
}
_CARD = """---
{metadata}
---

# {title}

{selected} images that {base} made itself, selected by a composite reward to align it with human
preference: the training set of [CRAFT]({paper}) (Composite Reward Assisted Fine-Tuning), built with diffusers-craft
{record[versions][diffusers_craft]}, an independent implementation.

![selected images](images/gallery.png)

## Use

```python
from datasets import load_dataset

dataset = load_dataset("{repo_id}", split="train")  # {selected} selected images
scores = load_dataset("{repo_id}", "scores", split="train")  # all {candidates} scored candidates, without images
```

The training scripts of diffusers-craft take `--dataset_name {repo_id}`. With `scores`, the set can be filtered again by
another rule or other weights.

## How it was made

{funnel}

![funnel](images/funnel.png)

{recipe}

## Rewards

{rewards}

Normalisation `{normalization}`, over all valid candidates. Composite reward: the sum of weight times normalised score.

![histograms of the rewards](images/rewards.png)

## Columns

{columns}

## Limits

The images show what one model draws and what the reward models above prefer, with the biases of both. Rewards can be
satisfied without better pictures; look at the gallery, and judge a model trained on this set by a measure that is not
among these rewards.

## Citation

{citation}
"""


def publish_dataset(
    work_folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Publishes what a build left in its work folder; no stage is run again.

    Configuration `default` holds the selected images, `scores` all candidates with their scores and without images.

    Args:
        work_folder (`str` or `Path`): `--output_dir` of a finished build.
        repo_id (`str`): e.g. `"org/craft-top100"`.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): defaults to `HF_TOKEN` or the login.
        revision (`str`, *optional*): branch to push to.
        license (`str`, *optional*): of the dataset, e.g. `"openrail++"`; by default the card says it is not stated.

    Returns:
        `str`: address of the commit.

    Raises:
        UserError: if the build is not finished or the upload fails.
    """
    folder = Path(work_folder)
    data = sorted((folder / DATASET_FOLDER).glob("train-*.parquet"))
    missing = [name for name in _NEEDED if not (folder / name).is_file()] + [DATASET_FOLDER] * (not data)
    if missing:
        raise UserError(f"work folder {folder}: expected a finished build, found no {missing[0]}; run the build again")
    repo = HubRepo(repo_id, "dataset", private, token, revision, license=license)
    files: Files = {f"data/{path.name}": path for path in data}
    files["scores/train-00000-of-00001.parquet"] = folder / SCORED_FILE
    files |= {f"images/{name}": folder / "report" / name for name in PICTURES}
    tables = {"default": data[0], "scores": folder / SCORED_FILE}
    files["README.md"] = _card(folder, tables, repo, license, token).encode()
    replaced = ("data/train-*.parquet", "scores/train-*.parquet")
    return repo.upload(folder, files, "Upload the CRAFT dataset", replaced)


def _prompts_license(record: Mapping[str, Any], token: str | None) -> License | None:
    """The licence that the prompts' source states on the Hub; the embedded prompts have this project's."""
    source = record["options"]["prompts"]
    if source in PROMPTS:
        return License(("apache-2.0",))
    repo_id = as_hub_id(str(source).split(":")[0], record.get("paths"))
    return hub_license(repo_id, "dataset", token) if repo_id else None


def _card(folder: Path, tables: Mapping[str, Path], repo: HubRepo, license: str | None, token: str | None) -> str:
    """Markdown with the metadata that the Hub reads; `tables` are a file of each configuration."""
    record, constants = read_json(folder / BUILD_FILE), read_json(folder / CONSTANTS_FILE)
    columns = [_column_table(name, pq.read_schema(path).names, constants["rewards"]) for name, path in tables.items()]
    repo_id = repo.open()  # once every file has been read: a damaged folder leaves no empty repository
    options, counts = without_paths(record["options"], record.get("paths")), record["funnel"]
    base = options["pretrained_model_name_or_path"].split(" (")[0]
    licenses = {
        "licence of the prompts": _prompts_license(record, token) or "not stated by their source",
        "licence of the dataset": license or "not stated; the terms of the base model and of the prompts apply",
    }
    header = ("reward", "weight", "normalisation constants", "model and revision")
    return _CARD.format(
        metadata=_metadata(repo_id, counts["selected"], license).to_yaml(),
        title=repo_id.split("/")[-1],
        **counts,
        base=link(record["base_model"]) if record["base_model"] else f"`{base}`",
        paper=PAPER,
        record=record,
        repo_id=repo_id,
        funnel=table(("stage", "count"), funnel_rows(counts)),
        recipe=table(("step", "setting"), recipe({**record, "options": options}, licenses).items()),
        rewards=table(header, _reward_rows(record, constants)),
        normalization=constants["normalization"],
        columns="\n\n".join(columns),
        citation=CITATION,
    )


def _metadata(repo_id: str, num_selected: int, license: str | None) -> DatasetCardData:
    files = {"default": "data/train-*", "scores": "scores/train-*"}
    configs = [{"config_name": name, "data_files": [{"split": "train", "path": p}]} for name, p in files.items()]
    configs[0]["default"] = True
    return DatasetCardData(
        license=license or "other",
        task_categories=["text-to-image"],
        size_categories=[next((name for limit, name in _SIZES if num_selected < limit), "n>1M")],
        pretty_name=repo_id.split("/")[-1],
        tags=["craft", "preference-alignment", "synthetic", f"arxiv:{ARXIV}"],
        configs=configs,
    )


def recipe(record: Mapping[str, Any], licenses: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Step to setting of a recorded build."""
    options = record["options"]
    rule = options["filter_rule"]
    limit = f"at most {options['max_per_prompt']} of a prompt (0: no limit)"
    return {
        "base model": f"{options['pretrained_model_name_or_path']}, {options['dtype']}",
        "prompts": "; ".join(dict.fromkeys([options["prompts"], record["stage_options"]["prompts"]])),
        **(licenses or {}),
        "refiner": _refiner_text(options, record["funnel"]),
        "sampler": ", ".join(f"{key} {value}" for key, value in options.get("scheduler", {}).items()),
        "resolution, pixels": options["resolution"],
        "denoising steps": options["num_inference_steps"],
        "guidance scale": options["guidance_scale"],
        "filter rule": rule if isinstance(rule, str) else " and ".join(rule),
        "selection": f"{options['selection']}, {options['num_samples']} images, {limit}",
        "seed": options["seed"],
        "versions": versions_text(record),
    }


def _refiner_text(options: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """What was refined in fact, which a service that fails makes less than what was asked for."""
    name, model, per_text = options["refiner"], options.get("refiner_model"), options["num_seeds"]
    if name == "none":
        return f"none; {options['num_refinements'] * per_text} images of each prompt by other seeds"
    asked = f"{options['num_refinements']} refinements of each prompt asked for, {per_text} image(s) of each"
    made = f"; refined {counts['refined']:,} of {counts['refinements']:,} candidates" if "refined" in counts else ""
    return f"{name}{f' ({model})' if model else ''}: {asked}{made}"


def _reward_rows(record: Mapping[str, Any], constants: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, entry in constants["rewards"].items():
        numbers = {key: value for key, value in entry.items() if key not in ("source", "values")}
        source = without_paths(entry.get("source", {}), record.get("paths"))
        yield (
            f"`{name}`",
            f"{record['composite_weights'].get(name, 0):g}",
            ", ".join(f"{key} {value:.8g}" for key, value in numbers.items()),
            ", ".join(f"{key} {value}" for key, value in source.items() if value is not None),
        )


def _column_table(config: str, names: Sequence[str], rewards: Mapping[str, Any]) -> str:
    about = {
        name: f"raw score; unit: {entry.get('source', {}).get('unit', 'its own')}; NaN where the image is not valid"
        for name, entry in rewards.items()
    }
    rows = [(f"`{name}`", (about | _COLUMNS).get(name, "")) for name in names]
    return f"Configuration `{config}`:\n\n{table(('column', 'what'), rows)}"
