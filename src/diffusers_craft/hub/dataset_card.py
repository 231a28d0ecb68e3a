# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The card of a dataset; every number on it is read from the files of the build."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from ..selection.funnel import funnel_rows
from .card import ARXIV, CITATION, PAPER, link, table, versions_text, without_paths


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
_DATASET_CARD = """---
{metadata}
---

# {title}

{count} images that {base} made itself, selected by a composite reward to align it with human
preference: the training set of [CRAFT]({paper}) (Composite Reward Assisted Fine-Tuning), built with diffusers-craft
{version}, an independent implementation.

![selected images](images/gallery.png)

## Use

```python
from datasets import load_dataset

dataset = load_dataset("{repo_id}", split="train")  # {count} selected images
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


def dataset_card(
    record: Mapping[str, Any],
    constants: Mapping[str, Any],
    repo_id: str,
    columns: Mapping[str, Sequence[str]],
    license: str | None = None,
    prompts_license: str | None = None,
) -> str:
    """The card of a dataset that `CRAFTDatasetBuilder` built.

    Args:
        record (`Mapping`): the build's `craft_build.json`.
        constants (`Mapping`): its `normalization.json`.
        repo_id (`str`): the dataset's id on the Hub.
        columns (`Mapping[str, Sequence[str]]`): configuration (`default`, `scores`) to its columns.
        license (`str`, *optional*): of the dataset, as the Hub spells it.
        prompts_license (`str`, *optional*): of the prompts' source.

    Returns:
        `str`: Markdown with the metadata that the Hub reads.
    """
    options, counts = without_paths(record["options"], record.get("paths")), record["funnel"]
    base = options["pretrained_model_name_or_path"].split(" (")[0]
    return _DATASET_CARD.format(
        metadata=_dataset_metadata(repo_id, counts, license),
        title=repo_id.split("/")[-1],
        count=counts["selected"],
        candidates=counts["candidates"],
        base=link(record["base_model"]) if record["base_model"] else f"`{base}`",
        paper=PAPER,
        version=record["versions"]["diffusers_craft"],
        repo_id=repo_id,
        funnel=table(("stage", "count"), funnel_rows(counts)),
        recipe=table(("step", "setting"), _recipe_rows(options, record, license, prompts_license)),
        rewards=table(
            ("reward", "weight", "normalisation constants", "model and revision"),
            _reward_rows(record, constants),
        ),
        normalization=constants["normalization"],
        columns="\n\n".join(_column_table(name, names, constants["rewards"]) for name, names in columns.items()),
        citation=CITATION,
    )


def _dataset_metadata(repo_id: str, counts: Mapping[str, Any], license: str | None) -> str:
    files = {"default": "data/train-*", "scores": "scores/train-*"}
    configs = [{"config_name": name, "data_files": [{"split": "train", "path": p}]} for name, p in files.items()]
    configs[0]["default"] = True
    data = DatasetCardData(
        license=license or "other",
        task_categories=["text-to-image"],
        size_categories=[next((name for limit, name in _SIZES if counts["selected"] < limit), "n>1M")],
        pretty_name=repo_id.split("/")[-1],
        tags=["craft", "preference-alignment", "synthetic", f"arxiv:{ARXIV}"],
        configs=configs,
    )
    return data.to_yaml()


def _recipe_rows(
    options: Mapping[str, Any], record: Mapping[str, Any], license: str | None, prompts_license: str | None
) -> list[tuple[str, Any]]:
    scheduler, model = options.get("scheduler", {}), options.get("refiner_model")
    rule = options["filter_rule"]
    return [
        ("base model", f"{options['pretrained_model_name_or_path']}, {options['dtype']}"),
        ("prompts", "; ".join(dict.fromkeys([options["prompts"], record["stage_options"]["prompts"]]))),
        ("licence of the prompts", prompts_license or "not stated by their source"),
        ("licence of the dataset", license or "not stated; the terms of the base model and of the prompts apply"),
        (
            "refiner",
            f"{options['refiner']}{f' ({model})' if model else ''}: {options['num_refinements']} refinements,"
            f" {options['num_seeds']} image(s) of each",
        ),
        ("sampler", ", ".join(f"{key} {value}" for key, value in scheduler.items())),
        ("resolution, pixels", options["resolution"]),
        ("denoising steps", options["num_inference_steps"]),
        ("guidance scale", options["guidance_scale"]),
        ("filter rule", rule if isinstance(rule, str) else " and ".join(rule)),
        (
            "selection",
            f"{options['selection']}, {options['num_samples']} images, at most {options['max_per_prompt']} of a prompt"
            " (0: no limit)",
        ),
        ("seed", options["seed"]),
        ("versions", versions_text(record)),
    ]


def _reward_rows(record: Mapping[str, Any], constants: Mapping[str, Any]) -> Iterable[tuple[str, Any, str, str]]:
    weights = record["composite_weights"]
    for name, entry in constants["rewards"].items():
        numbers = {key: value for key, value in entry.items() if key not in ("source", "values")}
        source = without_paths(entry.get("source", {}), record.get("paths"))
        yield (
            f"`{name}`",
            f"{weights.get(name, 0):g}",
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
