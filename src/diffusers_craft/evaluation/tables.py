# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Tables of an evaluation, models x prompt sets x metrics, as Markdown, LaTeX and CSV.

The best value of a column is bold and the second best underlined; values that print alike rank alike. Higher is better
unless a row says `lower_is_better`. Metrics are printed in the scale of the papers (HPSv2.1 and GenEval times 100).
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


PRINTED_TIMES = {"hps_v2.1": 100, "geneval": 100}  # raw score to the number that papers print
CSV_COLUMNS = ("prompts", "category", "model", "metric", "n", "mean", "median", "mean_of_categories")
CSV_COLUMNS += ("win_rate", "win_rate_low", "win_rate_high")
STATISTICS = {"mean": "Mean", "median": "Median", "mean_of_categories": "Mean of categories", "win_rate": "Win rate"}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A number as text, and its place in its column: 1 the best, 2 the second best, else 0."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """Lines of cells; `groups` spans the columns in order, as (title, number of columns)."""

    title: str
    groups: list[tuple[str, int]]
    columns: list[str]
    lines: list[tuple[str, list[Cell]]]

    @property
    def header(self) -> list[str]:
        """The columns' titles, with the group's where there are several."""
        if len(self.groups) < 2:
            return self.columns
        names = [name for name, width in self.groups for _ in range(width)]
        return [f"{name}: {column}" for name, column in zip(names, self.columns)]


def metric_label(metric: str) -> str:
    """A metric's column title: with the factor by which it is printed."""
    return f"{metric} x{PRINTED_TIMES[metric]}" if metric in PRINTED_TIMES else metric


def _printed(row: Mapping[str, Any] | None, key: str) -> tuple[str, float | None]:
    """A row's number as text, and as the value that ranks it."""
    if row is None or row[key] is None:
        return "-", None
    if key == "win_rate":
        text = f"{row[key]:.1%} [{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}]".replace("%", "")
        return text, round(row[key], 3)
    text = f"{row[key] * PRINTED_TIMES.get(row['metric'], 1):.4g}"
    return text, float(text)


def _column(rows: Sequence[Mapping[str, Any] | None], key: str) -> list[Cell]:
    """The cells of one metric, ranked; a column of one number has nothing to rank."""
    found = [_printed(row, key) for row in rows]
    values = [value for _, value in found if value is not None]
    descending = not any(row.get("lower_is_better") for row in rows if row is not None)
    ranking = sorted(set(values), reverse=descending)[:2] if len(values) > 1 else []
    return [Cell(text, ranking.index(value) + 1 if value in ranking else 0) for text, value in found]


def _distinct(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row.get(key) for row in rows))


def model_table(rows: Rows, key: str, models: Sequence[str]) -> Table:
    """One line per model, one column per prompt set and metric (the paper's tables 2 and 3).

    Args:
        rows (`Sequence[Mapping[str, Any]]`): what `summarize` returns; those of single categories are left out.
        key (`str`): the statistic: `mean`, `median`, `mean_of_categories` or `win_rate`.
        models (`Sequence[str]`): the lines.
    """
    rows = [row for row in rows if row.get("category") is None]
    cells = {(row.get("prompts"), row["metric"], row["model"]): row for row in rows}
    groups, columns, numbers = [], [], []
    for prompts in _distinct(rows, "prompts"):
        metrics = _distinct(
            [row for row in rows if row.get("prompts") == prompts and row.get(key) is not None], "metric"
        )
        groups.append((prompts or "", len(metrics)))
        columns += map(metric_label, metrics)
        numbers += [_column([cells.get((prompts, metric, model)) for model in models], key) for metric in metrics]
    groups = [group for group in groups if group[1]]
    return Table(
        STATISTICS[key],
        groups,
        columns,
        [(model, [column[i] for column in numbers]) for i, model in enumerate(models)],
    )


def category_tables(rows: Rows) -> list[Table]:
    """Means by category, a table per prompt set and metric: one line per category, one column per model."""
    tables, sets = [], _distinct(rows, "prompts")
    for prompts in sets:
        here = [row for row in rows if row.get("prompts") == prompts and row.get("category") is not None]
        models, cells = _distinct(here, "model"), {(r["category"], r["metric"], r["model"]): r for r in here}
        for metric in _distinct(here, "metric"):
            lines = [
                (str(name), _column([cells.get((name, metric, model)) for model in models], "mean"))
                for name in _distinct(here, "category")
            ]
            overall = {
                r["model"]: r
                for r in rows
                if r.get("prompts") == prompts and r["metric"] == metric and r.get("category") is None
            }
            lines.append(("mean of categories", _column([overall.get(m) for m in models], "mean_of_categories")))
            title = f"{metric_label(metric)} by category" + (f", {prompts}" if len(sets) > 1 else "")
            tables.append(Table(title, [], list(models), lines))
    return tables


def to_markdown(table: Table, marks: bool = True) -> str:
    """A table as Markdown whose columns also line up in a terminal."""
    wrap: Callable[[Cell], str] = _mark_markdown if marks else lambda cell: cell.text
    text = [[table.title, *table.header], *([line, *map(wrap, cells)] for line, cells in table.lines)]
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    lines = [[line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))] for line in text]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _mark_markdown(cell: Cell) -> str:
    return {1: f"**{cell.text}**", 2: f"<ins>{cell.text}</ins>"}.get(cell.rank, cell.text)


def to_latex(table: Table) -> str:
    """A table as a `tabular` of the package booktabs."""

    def mark(cell: Cell) -> str:
        text = _escape_latex(cell.text)
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)

    lines = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    if any(name for name, _ in table.groups):
        lines.append(
            " & " + " & ".join(rf"\multicolumn{{{w}}}{{c}}{{{_escape_latex(n)}}}" for n, w in table.groups) + r" \\"
        )
        ends = [2]
        for _, width in table.groups:
            ends.append(ends[-1] + width)
        lines.append(" ".join(rf"\cmidrule(lr){{{a}-{b - 1}}}" for a, b in zip(ends, ends[1:])))
    lines.append(" & ".join(map(_escape_latex, [table.title, *table.columns])) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join([_escape_latex(line), *map(mark, cells)]) + r" \\" for line, cells in table.lines]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(char, "\\" + char if char in "&%$#_{}" else char) for char in text)


def all_tables(rows: Rows) -> list[Table]:
    """All tables of an evaluation; empty ones are left out."""
    models = _distinct(rows, "model")
    bases = {row["model"] for row in rows if row["win_rate"] is not None}
    tables = [model_table(rows, key, models) for key in ("mean", "median", "mean_of_categories")]
    wins = model_table(rows, "win_rate", [model for model in models if model in bases])
    base = [model for model in models if model not in bases]
    title = f"Win rate against {base[0] if len(base) == 1 else 'the base'} in %, with 95 % interval"
    tables.append(Table(title, wins.groups, wins.columns, wins.lines))
    return [table for table in tables if table.columns] + category_tables(rows)


def format_table(rows: Rows, marks: bool = True) -> str:
    """The summary as Markdown: mean, median and win rate (%) with its interval, a line per model; then by category.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): what `summarize` returns; `prompts`, if there, names the prompt set.
        marks (`bool`, *optional*, defaults to `True`): whether to set the best value of a column bold and the second
            best underlined.

    Returns:
        `str`: several tables.
    """
    counts = [row["n"] for row in rows if row.get("category") is None]
    sets = [name for name in _distinct(rows, "prompts") if name]
    n = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    head = f"{n} prompts" + (f" of {', '.join(sets)}" if sets else "") + "."
    return "\n\n".join([head, *(to_markdown(table, marks) for table in all_tables(rows))]) + "\n"


def format_latex(rows: Rows) -> str:
    """The same tables as LaTeX, for the package booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(map(to_latex, all_tables(rows))) + "\n"


def format_csv(rows: Rows) -> str:
    """Every row with all its numbers, raw and not rounded, one line each."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: row.get(key) for key in CSV_COLUMNS} for row in rows)
    return buffer.getvalue()


def check_table(checks: Rows) -> Table:
    """One line per check and prompt set, one column per model: what the base has, what the tuned model has, the verdict.

    The limit comes last: a narrow screen shows the first columns.
    """
    models = _distinct(checks, "model")
    sets = [name for name in _distinct(checks, "prompts") if name]
    cells = {(check.get("prompts"), check["alarm"], check["model"]): check for check in checks}
    lines = []
    for prompts, alarm in dict.fromkeys((check.get("prompts"), check["alarm"]) for check in checks):
        found = [cells.get((prompts, alarm, model)) for model in models]
        limit = next((check["limit"] for check in found if check and check["value"] is not None), "-")
        name = f"{alarm}, {prompts}" if len(sets) > 1 else alarm
        lines.append((name, [*(Cell(_check_text(check)) for check in found), Cell(limit)]))
    return Table("Check", [], [*models, "limit"], lines)


def _check_text(check: Mapping[str, Any] | None) -> str:
    if check is None or check["value"] is None:
        return "-"
    before = "" if check["base"] is None else f"{check['base']:.3g} to "
    return f"{before}{check['value']:.3g}{' ALARM' if check['fired'] else ''}"


def unchecked_notes(checks: Rows) -> list[str]:
    """Why checks could not be made, one line per model and reason; with the prompt sets where it does not hold for all."""
    sets = {check.get("prompts") for check in checks}
    found: dict[str, list[str]] = {}
    for check in checks:
        if check["value"] is None:
            found.setdefault(check["message"], []).append(check.get("prompts"))
    return [text if len(own) == len(sets) else f"{text} ({', '.join(own)})" for text, own in found.items()]


def format_checks(checks: Rows) -> str:
    """The checks against reward hacking as Markdown: by model the base's value, its own, the alarm if any; limits.

    Below, as a list, what was not checked and why.
    """
    notes = "".join(f"- {note}\n" for note in unchecked_notes(checks))
    return to_markdown(check_table(checks)) + "\n" + ("\n" + notes if notes else "")
