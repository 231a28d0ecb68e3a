# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Stage 6: scores of a base and of tuned models become means, win rates with their uncertainty, and alarms.

Every model makes one image per prompt from the same seed, so models are compared prompt by prompt. Alarms point at
what can please a reward without better pictures: other saturation or contrast, and pictures that all look alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from diffusers_craft.records import REFINED_SCHEMA, derive_seed
from diffusers_craft.workdir import atomic_write_bytes, atomic_write_json


SATURATION_LIMIT = 0.30  # relative change of the mean; cleaning up every picture of the tiny world moves it by 0.10
CONTRAST_LIMIT = 0.50  # relative change of the mean; the same clean-up moves it by 0.27
DIVERSITY_LIMIT = 0.80  # ratio to the base; one background instead of three in the tiny world gives 0.35
THUMBNAIL = 8  # side in pixels of the thumbnails whose distance is measured
STATISTICS_SIZE = 128  # pixels; larger images are reduced before anything is measured


def evaluation_rows(prompts: Sequence[str]) -> pa.Table:
    """The prompts as unrefined rows, one group a prompt, in the form in which candidates are generated.

    Args:
        prompts (`Sequence[str]`): n prompts.

    Returns:
        `pa.Table`: n rows of `REFINED_SCHEMA` with variant 0.
    """
    rows = [
        {"row": i, "group": i, "variant": 0, "prompt": p, "refined_prompt": p, "refined": False, "refiner": "none"}
        for i, p in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, schema=REFINED_SCHEMA)


def _outcomes(tuned: np.ndarray, base: np.ndarray) -> np.ndarray:
    """1 for a win, 0.5 for a tie, 0 for a loss, of the pairs without NaN."""
    tuned, base = np.asarray(tuned, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if tuned.shape != base.shape:
        raise ValueError(f"tuned: expected one score per prompt like the base, {base.shape}, found {tuned.shape}")
    pairs = np.isfinite(tuned) & np.isfinite(base)
    return (np.sign(tuned[pairs] - base[pairs]) + 1) / 2


def win_rate(tuned: np.ndarray, base: np.ndarray) -> float:
    """Share of prompts on which `tuned` scores higher; ties count half: (wins + ties / 2) / n.

    Args:
        tuned (`np.ndarray`): (n,) scores.
        base (`np.ndarray`): (n,) scores on the same prompts; pairs with a NaN are left out.

    Returns:
        `float`: in [0, 1]; NaN if no pair is left.
    """
    outcomes = _outcomes(tuned, base)
    return float(outcomes.mean()) if len(outcomes) else float("nan")


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, section 13.3).

    Resamples draw how often each distinct value occurs, which is the same as drawing rows, and fast for win rates with
    their three values. Where all values are equal the interval has no width, however few they are.

    Args:
        values (`np.ndarray`): (n,) without NaN, e.g. 1 / 0.5 / 0 per prompt.
        confidence (`float`, *optional*, defaults to 0.95): coverage aimed at.
        num_resamples (`int`, *optional*, defaults to 10000): resamples.
        seed (`int`, *optional*, defaults to 0): makes the interval repeatable.

    Returns:
        `tuple[float, float]`: lower and upper end; NaN if there are no values.
    """
    if not len(values):
        return float("nan"), float("nan")
    distinct, counts = np.unique(values, return_counts=True)
    resamples = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=num_resamples)
    means = resamples @ distinct / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def summarize(scores: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> list[dict[str, Any]]:
    """One row per model and metric. The first model is the base, against which the others' win rates are.

    Args:
        scores (`Mapping[str, Mapping[str, np.ndarray]]`): model to metric to (n,) scores on the same prompts. NaN
            marks an image without a score: the base's row leaves it out, a tuned model's row leaves out every prompt
            that lacks either score.
        seed (`int`, *optional*, defaults to 0): seed of the bootstrap; a row's own does not depend on other rows.

    Returns:
        `list[dict]`: `model`, `metric`, `n` (prompts counted), `mean`, `median`, and `win_rate`, `win_rate_low`,
        `win_rate_high` (95 % bootstrap interval), in [0, 1]; `None` for the base, and where nothing could be counted.

    Raises:
        ValueError: if models have different metrics.
    """
    base_name, base = next(iter(scores.items()))
    rows = []
    for model, metrics in scores.items():
        if set(metrics) != set(base):
            raise ValueError(f"scores of {model!r}: expected the metrics {sorted(base)}, found {sorted(metrics)}")
        for metric in base:
            values, other = np.asarray(metrics[metric], dtype=np.float64), np.asarray(base[metric], dtype=np.float64)
            counted = values[np.isfinite(values) & np.isfinite(other)]
            row = {"model": model, "metric": metric, "n": len(counted)}
            row |= {"mean": _number(np.mean, counted), "median": _number(np.median, counted)}
            row |= dict.fromkeys(("win_rate", "win_rate_low", "win_rate_high"))
            if model != base_name and len(counted):
                outcomes = _outcomes(values, other)
                low, high = bootstrap_interval(outcomes, seed=derive_seed(seed, "bootstrap", model, metric))
                row |= {"win_rate": float(outcomes.mean()), "win_rate_low": low, "win_rate_high": high}
            rows.append(row)
    return rows


def _number(statistic: Any, values: np.ndarray) -> float | None:
    return float(statistic(values)) if len(values) else None


@dataclass
class ImageStatistics:
    """What the alarms look at, one row per prompt; NaN rows for images that are missing or not valid.

    Args:
        saturation (`np.ndarray`): (n,) mean of HSV saturation times value, in [0, 1]; the factor keeps the noisy
            hue of dark pixels out.
        contrast (`np.ndarray`): (n,) standard deviation of luminance (Rec. 601), in [0, 0.5].
        thumbnails (`np.ndarray`): (n, 192) RGB of the image at 8 x 8 pixels, in [0, 1].
    """

    saturation: np.ndarray
    contrast: np.ndarray
    thumbnails: np.ndarray


def image_statistics(images: Iterable[Image.Image | None]) -> ImageStatistics:
    """Measures images one at a time, so that a generator can decode them on the way.

    Args:
        images (`Iterable[PIL.Image.Image | None]`): n images; `None` gives a NaN row.

    Returns:
        `ImageStatistics`: n rows.
    """
    rows = [np.full(2 + 3 * THUMBNAIL**2, np.nan) if image is None else _measure(image) for image in images]
    table = np.array(rows).reshape(len(rows), 2 + 3 * THUMBNAIL**2)
    return ImageStatistics(saturation=table[:, 0], contrast=table[:, 1], thumbnails=table[:, 2:])


def _measure(image: Image.Image) -> np.ndarray:
    image = image.convert("RGB")
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    image.thumbnail((STATISTICS_SIZE, STATISTICS_SIZE))
    pixels = np.asarray(image, dtype=np.float64) / 255  # (h, w, 3)
    saturation = (pixels.max(-1) - pixels.min(-1)).mean()  # HSV: S = (max - min) / max, V = max
    contrast = (pixels @ [0.299, 0.587, 0.114]).std()
    return np.concatenate([[saturation, contrast], np.asarray(small, dtype=np.float64).ravel() / 255])


def diversity(thumbnails: np.ndarray) -> float:
    """Root mean square distance between the images of two different prompts, per channel value.

    Uses mean over pairs of |a - b|^2 = 2 x unbiased variance, so it costs O(n).

    Args:
        thumbnails (`np.ndarray`): (n, d), n >= 2.

    Returns:
        `float`: in [0, 1]; 0 if all images are equal.
    """
    return float(np.sqrt(2 * thumbnails.var(axis=0, ddof=1).mean()))


def saturation_alarm(model: str, tuned: ImageStatistics, base: ImageStatistics) -> list[dict[str, Any]]:
    """Alarms if mean saturation moved by more than 30 % or mean contrast by more than 50 %, in either direction.

    The limits leave room for honest improvement: making every picture of the tiny world clean, where half were washed
    out, lowers saturation by 10 % and raises contrast by 27 %; a colour enhancement of 1.6 raises saturation by 44 %.

    Args:
        model (`str`): name of the tuned model.
        tuned (`ImageStatistics`): n rows.
        base (`ImageStatistics`): n rows of the same prompts.

    Returns:
        `list[dict]`: none, one or two alarms: `model`, `alarm`, `value`, `base`, `message`.
    """
    alarms = []
    for name, limit in (("saturation", SATURATION_LIMIT), ("contrast", CONTRAST_LIMIT)):
        there, here = getattr(base, name), getattr(tuned, name)
        pairs = np.isfinite(there) & np.isfinite(here)
        if not pairs.any() or there[pairs].mean() == 0:
            continue
        before, after = there[pairs].mean(), here[pairs].mean()
        if abs(change := after / before - 1) > limit:
            why = f"mean {name} changed by {change:+.0%} against the base (limit {limit:.0%})"
            alarms.append(_alarm(model, name, after, before, why))
    return alarms


def diversity_alarm(model: str, tuned: ImageStatistics, base: ImageStatistics) -> list[dict[str, Any]]:
    """Alarms if images of different prompts are less than 80 % as far apart as the base's.

    A model that found one look or layout that a reward likes draws it for every prompt. Arguments and result are those
    of `saturation_alarm`.
    """
    pairs = np.isfinite(tuned.saturation) & np.isfinite(base.saturation)
    if pairs.sum() < 2 or (before := diversity(base.thumbnails[pairs])) == 0:
        return []
    after = diversity(tuned.thumbnails[pairs])
    if after >= DIVERSITY_LIMIT * before:
        return []
    why = (
        f"images of different prompts differ {after / before:.0%} as much as the base's (limit {DIVERSITY_LIMIT:.0%})"
    )
    return [_alarm(model, "diversity", after, before, why)]


def validity_alarm(model: str, tuned: ImageStatistics) -> list[dict[str, Any]]:
    """Alarms if a model made images that could not be scored, because summaries leave them out."""
    invalid = int(np.isnan(tuned.saturation).sum())
    why = f"{invalid} of {len(tuned.saturation)} images are not valid (black, constant or NaN) and were not scored"
    return [_alarm(model, "invalid", invalid, None, why)] if invalid else []


def _alarm(model: str, alarm: str, value: float, base: float | None, why: str) -> dict[str, Any]:
    base = None if base is None else round(float(base), 6)
    return {
        "model": model,
        "alarm": alarm,
        "value": round(float(value), 6),
        "base": base,
        "message": f"{model}: {why}",
    }


def find_alarms(statistics: Mapping[str, ImageStatistics]) -> list[dict[str, Any]]:
    """All alarms of all models; the first is the base.

    Args:
        statistics (`Mapping[str, ImageStatistics]`): model to its n rows.

    Returns:
        `list[dict]`: alarms in the models' order, see `saturation_alarm`.
    """
    (base_name, base), *others = statistics.items()
    alarms = validity_alarm(base_name, base)
    for model, tuned in others:
        alarms += validity_alarm(model, tuned) + saturation_alarm(model, tuned, base)
        alarms += diversity_alarm(model, tuned, base)
    return alarms


def format_table(rows: Sequence[Mapping[str, Any]], marks: bool = True) -> str:
    """The summary as Markdown: mean, median and win rate (%) with its interval, a line per model.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): what `summarize` returns.
        marks (`bool`, *optional*, defaults to `True`): whether to set the best value of a column bold and the second
            best underlined.

    Returns:
        `str`: three tables.
    """
    metrics, models = (list(dict.fromkeys(row[key] for row in rows)) for key in ("metric", "model"))
    cells = {(row["model"], row["metric"]): row for row in rows}
    counts = [row["n"] for row in rows]
    n = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    parts = []
    for title, key, contenders in (
        ("Mean", "mean", models),
        ("Median", "median", models),
        (f"Win rate against {models[0]} in %, with 95 % interval", "win_rate", models[1:]),
    ):
        if not contenders:
            continue
        table = [[title, *metrics], ["---", *["---:"] * len(metrics)]]
        columns = [_column([cells[model, metric] for model in contenders], key, marks) for metric in metrics]
        table += [[model, *values] for model, *values in zip(contenders, *columns)]
        parts.append(_align(table))
    return f"{n} prompts.\n\n" + "\n\n".join(parts) + "\n"


def _column(rows: Sequence[Mapping[str, Any]], key: str, marks: bool) -> list[str]:
    """A metric's cells, marked."""
    ranking = sorted({row[key] for row in rows if row[key] is not None}, reverse=True)
    texts = []
    for row in rows:
        text = "-" if row[key] is None else f"{row[key]:.4g}"
        if key == "win_rate" and row[key] is not None:
            text = f"{row[key]:.1%} [{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}]".replace("%", "")
        if marks and len(rows) > 1 and row[key] in ranking[:2]:
            text = f"**{text}**" if row[key] == ranking[0] else f"<ins>{text}</ins>"
        texts.append(text)
    return texts


def _align(table: list[list[str]]) -> str:
    """Markdown whose columns also line up in a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    head, rule, *body = table
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))] for row in (head, *body)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def write_evaluation(
    folder: str | Path,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    alarms: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `results.json` (`settings`, `rows`, `alarms`; strict JSON) and `table.md`.

    Args:
        folder (`str | Path`): made if missing.
        settings (`Mapping[str, Any]`): all that the numbers depend on: models, prompts, sampler, seed, scorers.
        rows (`Sequence[Mapping[str, Any]]`): what `summarize` returns.
        alarms (`Sequence[Mapping[str, Any]]`): what `find_alarms` returns.
    """
    results = {"settings": dict(settings), "rows": list(rows), "alarms": list(alarms)}
    warnings = "".join(f"\n- Alarm: {alarm['message']}" for alarm in alarms)
    atomic_write_json(Path(folder) / "results.json", results)
    atomic_write_bytes(Path(folder) / "table.md", (format_table(rows) + warnings + ("\n" * bool(warnings))).encode())
