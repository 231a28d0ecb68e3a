# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The card of a trained model; every number on it is read from the files of the run and of its evaluation.

diffusers' own template is not used: it leaves "TODO" where how to use the model and its limits belong.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from .card import CITATION, PAPER, link, table, without_paths
from .results import Results, eval_results, results_text


_KINDS = {
    "pipeline": "A complete pipeline",
    "unet": "UNet weights",
    "lora": "LoRA weights for a UNet",
}


class _Method(NamedTuple):
    """An objective on the card."""

    text: str
    rows: str = "images"  # what it is trained on
    arxiv: str | None = None


# By the name of the objective in the run's options.
_METHODS = {
    "craft": _Method(f"by [CRAFT]({PAPER}) (Composite Reward Assisted Fine-Tuning)", arxiv="2603.18991"),
    "sft": _Method("by supervised fine-tuning"),
    "dpo": _Method("by Diffusion-DPO", "pairs of images", "2311.12908"),
    "kto": _Method("by Diffusion-KTO", "labelled images", "2404.04465"),
    "mapo": _Method("by MaPO", "pairs of images", "2406.06424"),
    "dspo": _Method("by DSPO (Zhu et al., ICLR 2025)", "pairs of images"),
    "inpo": _Method("by InPO", "pairs of images", "2503.18454"),
    "spo": _Method("by SPO", "prompts", "2406.04314"),
    "SmPO": _Method("by SmPO-Diffusion", "pairs of images", "2506.02698"),
    "SFTSharpening": _Method("by SFT-Diffusion-Sharpening", arxiv="2502.12146"),
    "RLHFSharpening": _Method("by RLHF-Diffusion-Sharpening", "prompts", "2502.12146"),
}
_SNIPPETS = {
    "pipeline": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo_id}")""",
    "unet": """from diffusers import DiffusionPipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("{repo_id}")
pipeline = DiffusionPipeline.from_pretrained("{base}", unet=unet)""",
    "lora": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{repo_id}")""",
}
# Flags that say nothing about the weights.
_NOT_HYPERPARAMETERS = re.compile(
    r"output_dir|cache_dir|logging_dir|report_to|push_.*|hub_.*|resume_from_checkpoint|checkpoint.*|.*validation.*"
)
_LORA = ("rank", "lora_alpha", "lora_dropout")
_CARD = """# {title}

{kind}, aligned with human preference {method}: {base_link} fine-tuned on {num_rows} {rows}. Trained with diffusers-craft
{version}, an independent implementation.

{grid}

## Use

```python
{snippet}
image = pipeline({prompt!r}).images[0]
```

## Training

{data}

Hyperparameters (flags of the training script of diffusers-craft):

{hyperparameters}

Cost:

{cost}

## Evaluation

{evaluation}

## Limits

The model draws what its base model could draw, with the biases of that model, of the reward models and of the prompts.
Training raised rewards, which are models of taste and can be satisfied without better pictures (reward hacking: more
saturated colours, one style for every prompt, less variety). Numbers of the rewards that selected the training images are
no independent evidence; look at the pictures, and judge by a measure that took no part in the selection.

## Citation

{citation}
"""


class Published(NamedTuple):
    """What a card says about where things are on the Hub."""

    repo_id: str
    kind: str  # pipeline, unet or lora
    base_id: str | None
    dataset_id: str | None
    license: str | None
    prompts: Sequence[str]  # of images/0.png, images/1.png ...


def model_card(record: Mapping[str, Any], published: Published, results: Results | None = None) -> ModelCard:
    """The card of a finished training run.

    Args:
        record (`Mapping`): its `craft_run.json`.
        published (`Published`): ids, licence and pictures.
        results (`Results`, *optional*): of its evaluation.

    Returns:
        `ModelCard`: text and metadata.
    """
    options = without_paths(record["options"], record.get("paths"))
    base = published.base_id or options["pretrained_model_name_or_path"]
    method = _method(options)
    text = _CARD.format(
        title=published.repo_id.split("/")[-1],
        kind=_KINDS[published.kind],
        method=method.text,
        base_link=link(base) if published.base_id else f"`{base}`",
        num_rows=record["num_rows"],
        rows=method.rows,
        version=record["versions"]["diffusers_craft"],
        grid="![pictures drawn by the model](images/grid.png)" if published.prompts else "",
        snippet=_SNIPPETS[published.kind].format(repo_id=published.repo_id, base=base),
        prompt=next(iter(published.prompts), "a prompt"),
        data=table(("training", "value"), _data_rows(record, options, published)),
        hyperparameters=table(("flag", "value"), _hyperparameter_rows(options)),
        cost=table(("cost", "value"), _cost_rows(record)),
        evaluation=results_text(results) if results else "Not evaluated yet.",
        citation=_citation(method),
    )
    return ModelCard(f"---\n{_metadata(record, published, results).to_yaml()}\n---\n\n{text}")


def _method(options: Mapping[str, Any]) -> _Method:
    name = options.get("objective") or options["loss"]
    method = _METHODS.get(name, _Method(f"with the objective `{name}`"))
    return method._replace(rows="images") if options.get("generation_steps") == 0 else method


def _citation(method: _Method) -> str:
    if method == _METHODS["craft"]:
        return CITATION
    name = method.text.removeprefix("by ")
    if method.arxiv is None:
        return f"No arXiv paper is known for {name}."
    return f"{name}: [arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv})."


def _metadata(record: Mapping[str, Any], published: Published, results: Results | None) -> ModelCardData:
    family, is_lora, method = record["family"], published.kind == "lora", _method(record["options"])
    optional: dict[str, Any] = {"eval_results": eval_results(results)} if results else {}
    if published.base_id:
        optional |= {"base_model": published.base_id, "base_model_relation": "adapter" if is_lora else "finetune"}
    if published.prompts:
        optional["widget"] = [
            {"text": prompt, "output": {"url": f"images/{index}.png"}}
            for index, prompt in enumerate(published.prompts)
        ]
    return ModelCardData(
        license=published.license or "other",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        datasets=[published.dataset_id] if published.dataset_id else None,
        model_name=published.repo_id.split("/")[-1],
        tags=[family, f"{family}-diffusers", "text-to-image", "diffusers", "diffusers-training"]
        + ["craft"] * (method == _METHODS["craft"])
        + ["lora"] * is_lora
        + ([f"arxiv:{method.arxiv}"] if method.arxiv else []),
        **optional,
    )


def _data_rows(
    record: Mapping[str, Any], options: Mapping[str, Any], published: Published
) -> Iterator[tuple[str, Any]]:
    history, data = record["loss_history"], options["dataset_name"] or options["train_data_dir"]
    yield "dataset", link(published.dataset_id, "datasets/") if published.dataset_id else f"{data} (not published)"
    rows = _method(options).rows
    yield rows, record["num_rows"]
    yield "optimizer steps", options["max_train_steps"]
    yield f"{rows} in a step", record["global_batch_size"]
    yield "loss of the first and of the last step", f"{history[0]['train_loss']:.4g}, {history[-1]['train_loss']:.4g}"
    yield "licence of the base model", published.license or "not found; see the base model"
    yield "versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)


def _hyperparameter_rows(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        unused = _NOT_HYPERPARAMETERS.fullmatch(name) or (name in _LORA and not options.get("use_lora"))
        if value is not None and value is not False and not unused:
            yield f"`--{name}`", "" if value is True else value


def _cost_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Unknown numbers (`null`) are left out."""
    yield "device", f"{record['num_processes']} x {record['device']}"
    for label, key in (
        ("device hours", "device_hours"),
        ("images a second, over all devices", "images_per_second"),
        ("peak memory of a process, GB", "peak_gb"),
        ("TFLOP of a forward pass, an image", "forward_tflop"),
        ("share of the device's peak FLOP/s", "mfu"),
    ):
        if (value := record["speed"].get(key)) is not None:
            yield label, f"{value:.3g}"
