# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The card of a trained model; every number on it is read from the files of the run and of its evaluation.

diffusers' own template is not used: it leaves "TODO" where how to use the model and its limits belong.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..core.files import read_json
from ..core.printed import metric_label, printed_score
from ..errors import UserError
from ..objectives.registry import find
from .card import ARXIV, CITATION, PAPER, License, link, table, versions_text, without_paths
from .upload import as_hub_id


logger = logging.getLogger(__name__)

_KINDS = {"pipeline": "A complete pipeline", "unet": "{part} weights", "lora": "LoRA weights for a {part}"}
# What a run is trained on, by the unit of its objective.
_ROWS = {"single": "images", "label": "labelled images", "pair": "pairs of images", "prompt": "prompts"}
_SNIPPETS = {
    "pipeline": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo_id}")""",
    "unet": """from diffusers import DiffusionPipeline, {part_class}

{component} = {part_class}.from_pretrained("{repo_id}")
pipeline = DiffusionPipeline.from_pretrained("{base}", {component}={component})""",
    "lora": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{repo_id}")""",
}
# Flags that say nothing about the weights.
_NOT_HYPERPARAMETERS = re.compile(
    r"output_dir|cache_dir|logging_dir|report_to|push_.*|hub_.*|resume_from_checkpoint|checkpoint.*|.*validation.*"
)
_LORA = ("rank", "lora_alpha", "lora_dropout")
_NO_ADDRESS = r"[^\w.-]+"  # what ends the address of a picture in Markdown, or needs escapes in it
_CARD = """# {title}

{kind}, aligned with human preference {text}: {base_link} fine-tuned on {num_rows} {rows}. Trained with diffusers-craft
{record[versions][diffusers_craft]}, an independent implementation.

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
    kind: str  # pipeline, unet (the denoiser alone) or lora
    base_id: str | None
    dataset_id: str | None
    license: License | None
    prompts: Sequence[str]  # of images/0.png, images/1.png ...
    component: str = "unet"  # what denoises in the pipeline
    part_class: str = "UNet2DConditionModel"  # its class in diffusers


class Results(NamedTuple):
    """One tuned model against its base; rows over all prompts of a set, not over its categories."""

    base: str  # name of the base in the table
    rows: list[dict[str, Any]]  # one per prompt set and metric: summarize's columns, `base_mean`, `prompts`, `unit`
    alarms: list[str]
    grids: dict[str, Path]  # path in the repository -> picture


def model_card(record: Mapping[str, Any], published: Published, results: Results | None = None) -> ModelCard:
    """Text and metadata of a finished run, by its `craft_run.json` and the results of its evaluation."""
    options = without_paths(record["options"], record.get("paths"))
    record = {**record, "options": options}
    base = published.base_id or options["pretrained_model_name_or_path"]
    method = _method(options)
    text = _CARD.format(
        title=published.repo_id.split("/")[-1],
        kind=_KINDS[published.kind].format(part="UNet" if published.component == "unet" else published.component),
        **method,
        num_rows=record["num_rows"],
        record=record,
        base_link=link(base) if published.base_id else f"`{base}`",
        grid="![pictures drawn by the model](images/grid.png)" if published.prompts else "",
        snippet=_SNIPPETS[published.kind].format(base=base, **published._asdict()),
        prompt=next(iter(published.prompts), "a prompt"),
        data=table(("training", "value"), _data_rows(record, published, method["rows"])),
        hyperparameters=table(("flag", "value"), _hyperparameter_rows(options)),
        cost=table(("cost", "value"), _cost_rows(record)),
        evaluation=results_text(results) if results else "Not evaluated yet.",
    )
    return ModelCard(
        f"---\n{_metadata(record['family'], published, method['arxiv'], results).to_yaml()}\n---\n\n{text}"
    )


def _method(options: Mapping[str, Any]) -> dict[str, str]:
    """`text`, `rows` (what it is trained on), `citation`, `arxiv` of a run's objective; by its name if unknown."""
    name, about = find(options)
    if about is None:
        logger.warning("objective %r: expected one of diffusers-craft; the card names no paper", name)
        text, rows, arxiv = f"with the objective `{name}`", _ROWS["single"], ""
        citation = f"No arXiv paper is known for `{name}`."
    else:
        text, rows, arxiv = f"by {about.title}", _ROWS[about.unit], about.paper
        citation = f"No arXiv paper is known for {about.title}."
    if arxiv == ARXIV:
        text, citation = f"by [CRAFT]({PAPER}) (Composite Reward Assisted Fine-Tuning)", CITATION
    elif arxiv:
        citation = f"{about.title}: [arXiv:{arxiv}](https://arxiv.org/abs/{arxiv})."
    return {"text": text, "rows": rows, "citation": citation, "arxiv": arxiv}


def _metadata(family: str, published: Published, arxiv: str, results: Results | None) -> ModelCardData:
    is_lora = published.kind == "lora"
    optional: dict[str, Any] = {"eval_results": eval_results(results)} if results else {}
    if published.base_id:
        optional |= {"base_model": published.base_id, "base_model_relation": "adapter" if is_lora else "finetune"}
    if published.prompts:
        pictures = enumerate(published.prompts)
        optional["widget"] = [{"text": text, "output": {"url": f"images/{index}.png"}} for index, text in pictures]
    return ModelCardData(
        **(published.license or License(("other",))).metadata,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        datasets=[published.dataset_id] if published.dataset_id else None,
        model_name=published.repo_id.split("/")[-1],
        tags=[family, f"{family}-diffusers", "text-to-image", "diffusers", "diffusers-training"]
        + ["craft"] * (arxiv == ARXIV)
        + ["lora"] * is_lora
        + [f"arxiv:{arxiv}"] * bool(arxiv),
        **optional,
    )


def _data_rows(record: Mapping[str, Any], published: Published, rows: str) -> Iterator[tuple[str, Any]]:
    options, history = record["options"], record["loss_history"]
    data = options["dataset_name"] or options["train_data_dir"]
    yield "dataset", link(published.dataset_id, "datasets/") if published.dataset_id else f"{data} (not published)"
    yield rows, record["num_rows"]
    yield "optimizer steps", options["max_train_steps"]
    yield f"{rows} in a step", record["global_batch_size"]
    yield "loss of the first and of the last step", f"{history[0]['train_loss']:.4g}, {history[-1]['train_loss']:.4g}"
    yield "licence of the base model", published.license or "not found; see the base model"
    yield "versions", versions_text(record)


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
        ("images per second, over all devices", "images_per_second"),
        ("peak memory of a process, GB", "peak_gb"),
        ("TFLOP of a forward pass, an image", "forward_tflop"),
        ("share of the device's peak FLOP/s", "mfu"),
    ):
        if (value := record["speed"].get(key)) is not None:
            yield label, f"{value:.3g}"


def read_results(evaluation: str | Path, folder: Path, repo_id: str) -> Results:
    """Reads `results.json` of an evaluation; the model is found by its `--output_dir` or its Hub id."""
    path = Path(evaluation) / "results.json"
    if not path.is_file():
        raise UserError(f"--evaluation_dir: expected the --output_dir of evaluate_craft.py, found no {path}")
    content = read_json(path)
    run = Path(evaluation) / "craft_evaluate.json"
    paths = read_json(run).get("paths", {}) if run.is_file() else {}
    models = {name: paths.get(about["model"], about["model"]) for name, about in content["settings"]["models"].items()}
    base, *others = models
    name = next((n for n in others if models[n] == repo_id or Path(models[n]).resolve() == folder.resolve()), None)
    if name is None:
        found = ", ".join(without_paths([models[n] for n in others])) or "none"
        raise UserError(f"--evaluation_dir: expected an evaluation of {folder}, found one of {found} in {path}")
    pictures = sorted(Path(evaluation).glob("grid*.png"))
    grids = {f"images/evaluation_{re.sub(_NO_ADDRESS, '-', picture.stem)}.png": picture for picture in pictures}
    alarms = [alarm["message"] for alarm in content["alarms"] if alarm["model"] == name]
    return Results(base, list(_rows(content, base, name)), alarms, grids)


def _rows(content: Mapping[str, Any], base: str, name: str) -> list[dict[str, Any]]:
    sets, metrics = content["settings"]["prompts"], content["settings"]["metrics"]
    only = sets if isinstance(sets, str) else next(iter(sets))
    rows = [row for row in content["rows"] if row.get("category") is None]
    means = {(row.get("prompts", only), row["metric"]): row["mean"] for row in rows if row["model"] == base}
    found = []
    for row in rows:
        if row["model"] == name:
            prompts = row.get("prompts", only)
            own = {"prompts": without_paths(prompts), "base_mean": means[prompts, row["metric"]]}
            found.append(row | own | {"unit": metrics.get(row["metric"], {}).get("unit", "raw score")})
    return found


def eval_results(results: Results) -> list[EvalResult]:
    """Means and win rates, in the form of the Hub's `model-index`."""
    found = []
    for row in results.rows:
        metric, prompts = row["metric"], row["prompts"]
        dataset = {"dataset_type": as_hub_id(prompts) or prompts, "dataset_name": f"{prompts}, {row['n']} prompts"}
        entries = [(metric, f"{metric}, mean ({row['unit']})", row["mean"])]
        entries.append((f"{metric}_win_rate", f"{metric}, win rate against {results.base}", row["win_rate"]))
        found += [
            EvalResult(task_type="text-to-image", metric_type=kind, metric_name=name, metric_value=value, **dataset)
            for kind, name, value in entries
            if value is not None
        ]
    return found


def results_text(results: Results) -> str:
    """Markdown: how it was measured, the table, the alarms, the pictures."""
    header = ("prompts", "n", "metric", f"{results.base}, mean", "this model, mean", "win rate")
    rows = [
        (
            f"`{row['prompts']}`",
            row["n"],
            metric_label(row["metric"]),
            *("-" if mean is None else printed_score(row["metric"], mean) for mean in (row["base_mean"], row["mean"])),
            _rate(row),
        )
        for row in results.rows
    ]
    parts = [
        "Both models drew each of n prompts from the same seeds. Win rate against"
        f" `{results.base}` with its 95 % interval; a tie counts half.",
        table(header, rows),
        "\n".join(f"- Alarm: {message}" for message in results.alarms),
        "\n".join(f"![base and tuned models]({path})" for path in results.grids),
    ]
    return "\n\n".join(filter(None, parts))


def _rate(row: Mapping[str, Any]) -> str:
    if row["win_rate"] is None:
        return "-"
    return f"{row['win_rate']:.1%} [{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}]"
