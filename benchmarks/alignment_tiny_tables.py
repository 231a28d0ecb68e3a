# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Tables and plot of what alignment_tiny.py has measured so far.

    python benchmarks/alignment_tiny_tables.py --work outputs/alignment

Means over seeds with the standard deviation between them; win rates against the base on the same prompts and noise, with a
95 % bootstrap interval over all prompts of all seeds. Methods stand in the order of their win rate on the exact scorer,
which no method has seen. A method whose steps at equal compute are just CRAFT's has the same cell at equal image passes.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from alignment_methods import BATCH, METHODS, STEPS

from diffusers_craft import bootstrap_interval
from diffusers_craft.scripts import atomic_write_bytes, atomic_write_json


OWN_RATE = 1e-4  # stands for a method that was tried with several
METRICS = ("exact", "hps_v2.1", "pickscore", "aesthetic")
TITLES = {
    "compute": "Equal UNet forwards (28,800; a backward pass counts 2)",
    "passes": "Equal image passes (9,600 images with a gradient)",
    "seconds": "Equal processor time of the training loop (what CRAFT's 150 steps took)",
}
PARTS = {
    "methods": "Methods",
    "selection": "Which candidates (paper, tables 5 and 10)",
    "rewards": "Which rewards, in filter and composite (table 6)",
    "betas": "Betas as strong as in the papers per summed squared error: a 64th",
    "variants": "Released code's variants, and SFT first",
}


def read_cells(work: Path) -> list[dict]:
    """All cells, and those at equal image passes that equal compute has made already."""
    cells = [json.loads(path.read_text()) for path in sorted((work / "cells").glob("*.json"))]
    made = {(cell["method"], cell["seed"], cell["learning_rate"]) for cell in cells if cell["budget"] == "passes"}
    twins = [
        cell | {"budget": "passes"}
        for cell in cells
        if cell["budget"] == "compute"
        and (cell["steps"], cell["images"]) == (STEPS, STEPS * BATCH)
        and (cell["method"], cell["seed"], cell["learning_rate"]) not in made
        and METHODS[cell["method"]].part == "methods"
    ]
    return cells + twins


def outcomes(tuned: list[float], base: list[float]) -> np.ndarray:
    """1, 0.5 or 0 for each prompt; those with an image that is not valid, which has no score, are left out."""
    found = (np.sign(np.asarray(tuned, float) - np.asarray(base, float)) + 1) / 2
    return found[np.isfinite(found)]


def mean_score(scores: list[float | None]) -> float:
    """Over the images that are valid."""
    return float(np.nanmean(np.asarray(scores, float)))


def summarize_rows(cells: list[dict]) -> list[dict]:
    """One row per budget, method and learning rate, over the seeds that are there."""
    bases = {cell["seed"]: cell["scores"] for cell in cells if cell["method"] == "base"}
    grouped = defaultdict(list)
    for cell in cells:
        if cell["method"] != "base" and cell["seed"] in bases:
            grouped[cell["budget"], cell["method"], cell["learning_rate"]].append(cell)
    rows = []
    for (budget, method, rate), members in grouped.items():
        row = {"budget": budget, "method": method, "learning_rate": rate, "part": METHODS[method].part}
        row |= {"seeds": sorted(cell["seed"] for cell in members), "dates": sorted({cell["date"] for cell in members})}
        for metric in METRICS:
            means = [mean_score(cell["scores"][metric]) for cell in members]
            decided = [outcomes(cell["scores"][metric], bases[cell["seed"]][metric]) for cell in members]
            wins, pooled = [part.mean() for part in decided], np.concatenate(decided)
            row[metric] = {
                "mean": float(np.mean(means)),
                "deviation": float(np.std(means, ddof=1)) if len(means) > 1 else None,
                "win_rate": float(np.mean(wins)),
                "interval": bootstrap_interval(pooled),
            }
        for name in ("seconds", "cost", "forwards", "images", "steps", "peak_memory_mb"):
            row[name] = float(np.mean([cell[name] for cell in members]))
        timed = [cell["cpu_seconds"] for cell in members if "cpu_seconds" in cell]
        row["cpu_seconds"] = float(np.mean(timed)) if timed else None
        rows.append(row)
    return sorted(rows, key=lambda row: (row["budget"], -row["exact"]["win_rate"], row["method"]))


def base_means(cells: list[dict]) -> dict[int, dict[str, float]]:
    """The base's mean by seed and metric."""
    bases = {cell["seed"]: cell["scores"] for cell in cells if cell["method"] == "base"}
    return {seed: {metric: mean_score(scores[metric]) for metric in METRICS} for seed, scores in bases.items()}


def format_rows(rows: list[dict], base: dict[int, dict[str, float]]) -> str:
    """A Markdown table; the base has a row for each set of seeds that a method was run with."""
    head = ["method", "rate", "seeds", "exact %", *(f"win {metric} %" for metric in METRICS), "pickscore"]
    head += ["steps", "images", "forwards", "CPU s", "peak MB"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    empty = [""] * (len(head) - 10)
    for seeds in sorted({tuple(row["seeds"]) for row in rows}):
        exact, pickscore = (np.mean([base[seed][metric] for seed in seeds]) for metric in ("exact", "pickscore"))
        about = ["base", "", ", ".join(map(str, seeds)), f"{100 * exact:.1f}", "", "", "", "", f"{pickscore:.3g}"]
        lines.append([*about, *empty, ""])
    for row in rows:
        spread = row["exact"]["deviation"]
        exact = f"{100 * row['exact']['mean']:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
        wins = []
        for metric in METRICS:
            low, high = row[metric]["interval"]
            wins.append(f"{100 * row[metric]['win_rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        counts = [f"{row['steps']:.0f}", f"{row['images']:,.0f}", f"{row['forwards']:,.0f}"]
        counts.append("" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}")
        counts.append(f"{row['peak_memory_mb']:.0f}")
        rate, seeds = f"{row['learning_rate']:g}", ", ".join(map(str, row["seeds"]))
        lines.append([row["method"], rate, seeds, exact, *wins, f"{row['pickscore']['mean']:.3g}", *counts])
    return "\n".join("| " + " | ".join(line[: len(head)]) + " |" for line in lines)


def duels(cells: list[dict], rates: dict[str, float]) -> str:
    """CRAFT's win rate against every other method on the same prompts and noise, at equal compute."""
    found = defaultdict(dict)
    for cell in cells:
        is_own = cell["learning_rate"] == rates.get(cell["method"], OWN_RATE)
        if cell["budget"] == "compute" and is_own and METHODS[cell["method"]].part == "methods":
            found[cell["method"]][cell["seed"]] = cell["scores"]
    ours = found.pop("craft", {})
    lines = [
        ["CRAFT against", "seeds", *(f"{metric} %" for metric in METRICS)],
        ["---"] + ["---:"] * (1 + len(METRICS)),
    ]
    for method, theirs in sorted(found.items()):
        seeds = sorted(set(ours) & set(theirs))
        if not seeds:
            continue
        line = [method, ", ".join(map(str, seeds))]
        for metric in METRICS:
            wins = np.concatenate([outcomes(ours[seed][metric], theirs[seed][metric]) for seed in seeds])
            low, high = bootstrap_interval(wins)
            line.append(f"{100 * wins.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: list[dict], path: Path) -> None:
    """Win rate against the time of training, like the paper's figure 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharex=True)
    methods = [row for row in rows if row["part"] == "methods" and row["cpu_seconds"] is not None]
    names = sorted({row["method"] for row in methods})
    marks = {"compute": "o", "passes": "s", "seconds": "^"}
    for axis, metric in zip(axes, ("exact", "pickscore")):
        for row in methods:
            index = names.index(row["method"])
            low, high = row[metric]["interval"]
            x, y = row["cpu_seconds"] * 1.02 ** (index - len(names) / 2), 100 * row[metric]["win_rate"]
            style = {"fmt": marks[row["budget"]], "color": plt.get_cmap("tab20")(index), "capsize": 2, "markersize": 5}
            axis.errorbar(x, y, yerr=[[y - 100 * low], [100 * high - y]], **style)
        axis.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_xlabel("processor seconds of training (methods a little apart, to be seen)")
        axis.set_ylabel(f"win rate against base, {metric} (%)")
    colors = [plt.Line2D([], [], color=plt.get_cmap("tab20")(i), linewidth=3, label=n) for i, n in enumerate(names)]
    about = {"compute": "equal compute", "passes": "equal image passes", "seconds": "equal processor time"}
    shapes = [plt.Line2D([], [], color="k", marker=marks[k], linestyle="", label=v) for k, v in about.items()]
    figure.legend(handles=colors + shapes, loc="lower center", ncol=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=130)
    atomic_write_bytes(path, temporary.read_bytes())
    temporary.unlink()


def main(args: argparse.Namespace) -> None:
    cells = read_cells(args.work)
    rows = summarize_rows(cells)
    if not rows:
        raise SystemExit(f"error: --work: expected cells with their base, found none in {args.work}")
    base = base_means(cells)
    shown = [row for row in rows if row["learning_rate"] == args.learning_rates.get(row["method"], OWN_RATE)]
    text = [f"# CRAFT and its rivals on the tiny world ({time.strftime('%Y-%m-%d')})", "", args.hardware, ""]
    for part, title in PARTS.items():
        for budget, about in TITLES.items():
            members = [row for row in shown if row["part"] == part and row["budget"] == budget]
            if members:
                text += [f"## {title}: {about}", "", format_rows(members, base), ""]
    text += ["## CRAFT against each, at equal UNet forwards", "", duels(cells, args.learning_rates), ""]
    others = [row for row in rows if not any(row is one for one in shown)]
    if others:
        text += ["## Other learning rates", "", format_rows(others, base), ""]
    args.results.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(args.results / "alignment_tiny.md", "\n".join(text).encode())
    atomic_write_json(args.results / "alignment_tiny.json", {"hardware": args.hardware, "rows": rows})
    draw(shown, args.results / "alignment_tiny.png")
    print("\n".join(text))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/alignment"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--hardware", default="2 CPU cores (Intel Xeon with AMX), one thread, no GPU; 300 held-out captions."
    )
    parser.add_argument(
        "--learning_rate",
        action="append",
        default=[],
        metavar="METHOD=RATE",
        help="Which rate stands for a method with several.",
    )
    args = parser.parse_args()
    args.learning_rates = {text.split("=")[0]: float(text.split("=")[1]) for text in args.learning_rate}
    return args


if __name__ == "__main__":
    main(parse_args())
