# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Tables of an evaluation, models x prompt sets x metrics, as Markdown, LaTeX and CSV.

A column's best value is bold, the second best underlined. Higher is better unless a row says `lower_is_better`.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from ..core.printed import metric_label, printed_score


STATISTICS = {"mean": "Mean", "median": "Median", "mean_of_categories": "Mean of categories", "win_rate": "Win rate"}
CSV_COLUMNS = ("prompts", "category", "model", "metric", "n", *STATISTICS, "win_rate_low", "win_rate_high")
MARKDOWN_MARKS = ("{}", "**{}**", "<ins>{}</ins>")  # by rank
LATEX_MARKS = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
LATEX_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX_ESCAPES |= {char: f"\\{char}" for char in "&%$#_{}"}
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # of cells that a spreadsheet computes
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
    columns: list[str]
    lines: list[tuple[str, list[Cell]]]
    groups: Sequence[tuple[str, int]] = ()

    @property
    def header(self) -> list[str]:
        """The title and those of the columns, with the group's where there are several."""
        if len(self.groups) < 2:
            return [self.title, *self.columns]
        names = [name for name, width in self.groups for _ in range(width)]
        return [self.title, *(f"{name}: {column}" if name else column for name, column in zip(names, self.columns))]


def one_line(text: str) -> str:
    """A text without line breaks and other characters that do not print."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def markdown_text(text: str) -> str:
    """A text as Markdown that shows it: no cell ends in it, no tag, link or picture is made of it."""
    return re.sub(r"[\\`*|]|(?<=\])\(", r"\\\g<0>", one_line(text)).replace("<", "&lt;")


def _plain_text(text: str) -> str:
    """A text for a terminal, where only the end of a cell is escaped."""
    return one_line(text).replace("|", r"\|")


def csv_text(value: Any) -> Any:
    """A value of a CSV file; a text that a spreadsheet would compute gets the quote that makes it text."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(FORMULA_STARTS) else value


def _printed(row: Mapping[str, Any] | None, key: str) -> tuple[str, float | None]:
    """A row's number as text, and as the value that ranks it."""
    if row is None or row.get(key) is None:
        return "-", None
    if key == "win_rate":
        low, high = row.get("win_rate_low"), row.get("win_rate_high")  # papers print none
        interval = "" if None in (low, high) else f" [{low:.1%}, {high:.1%}]"
        return f"{row[key]:.1%}{interval}".replace("%", ""), round(row[key], 3)
    text = printed_score(row["metric"], row[key])
    return text, float(text)


def _column(rows: Sequence[Mapping[str, Any] | None], key: str) -> list[Cell]:
    """The cells of one metric, ranked as they print; a column of one number has nothing to rank."""
    found = [_printed(row, key) for row in rows]
    values = [value for _, value in found if value is not None]
    descending = not any(row.get("lower_is_better") for row in rows if row is not None)
    ranking = sorted(set(values), reverse=descending)[:2] if len(values) > 1 else []
    return [Cell(text, ranking.index(value) + 1 if value in ranking else 0) for text, value in found]


def distinct(rows: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    """The values of a column, each once, in the order in which they come."""
    return list(dict.fromkeys(row.get(key) for row in rows))


def model_table(rows: Rows, key: str, models: Sequence[str], title: str = "") -> Table:
    """One line per model, one column per prompt set and metric (the paper's tables 2 and 3); `key`: the statistic."""
    rows = [row for row in rows if row.get("category") is None]
    cells = {(row.get("prompts"), row["metric"], row["model"]): row for row in rows}
    sets = distinct(rows, "prompts")
    places = dict.fromkeys(place[:2] for place, row in cells.items() if row.get(key) is not None)
    places = sorted(places, key=lambda place: sets.index(place[0]))  # stable: the metrics of a set keep their order
    columns = [_column([cells.get((*place, model)) for model in models], key) for place in places]
    lines = [(model, [column[i] for column in columns]) for i, model in enumerate(models)]
    groups = Counter(prompts or "" for prompts, _ in places)
    return Table(title or STATISTICS[key], [metric_label(metric) for _, metric in places], lines, list(groups.items()))


def category_tables(rows: Rows) -> list[Table]:
    """Means by category, a table per prompt set and metric: one line per category, one column per model."""
    tables, sets = [], distinct(rows, "prompts")
    for prompts in sets:
        here = [row for row in rows if row.get("prompts") == prompts]
        cells = {(row["metric"], row.get("category"), row["model"]): row for row in here}
        parts = [row for row in here if row.get("category") is not None]
        models = distinct(parts, "model")
        statistics = dict.fromkeys(distinct(parts, "category"), "mean") | {None: "mean_of_categories"}
        for metric in distinct(parts, "metric"):
            lines = [
                (
                    "mean of categories" if name is None else str(name),
                    _column([cells.get((metric, name, m)) for m in models], key),
                )
                for name, key in statistics.items()
            ]
            title = f"{metric_label(metric)} by category" + (f", {prompts}" if len(sets) > 1 and prompts else "")
            tables.append(Table(title, models, lines))
    return tables


def to_markdown(table: Table, marks: bool = True) -> str:
    """A table as Markdown whose columns also line up in a terminal."""
    formats, shown = (MARKDOWN_MARKS, markdown_text) if marks else (("{}",) * 3, _plain_text)
    text = [list(map(shown, table.header))]
    text += [[shown(line), *(formats[c.rank].format(shown(c.text)) for c in cells)] for line, cells in table.lines]
    first, *widths = [max(2, *map(len, column)) for column in zip(*text)]  # ":" alone divides no table
    lines = [[line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in text]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in widths)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_latex(table: Table) -> str:
    """A table as a `tabular` of the package booktabs."""

    def escape(text: str) -> str:
        text = one_line(text).translate(str.maketrans(LATEX_ESCAPES))
        return f"{{}}{text}" if text.startswith(("[", "*")) else text  # else an argument of the line's end before it

    lines = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    if any(name for name, _ in table.groups):
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}" for name, width in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
        ends = accumulate((width for _, width in table.groups), initial=1)
        lines.append(" ".join(rf"\cmidrule(lr){{{before + 1}-{end}}}" for before, end in pairwise(ends)))
    lines += [" & ".join(map(escape, [table.title, *table.columns])) + r" \\", r"\midrule"]
    for line, cells in table.lines:
        marked = [LATEX_MARKS[cell.rank].format(escape(cell.text)) for cell in cells]
        lines.append(" & ".join([escape(line), *marked]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def all_tables(rows: Rows) -> list[Table]:
    """All tables of an evaluation; empty ones are left out."""
    models = distinct(rows, "model")
    tuned = distinct([row for row in rows if row["win_rate"] is not None], "model")
    base = [model for model in models if model not in tuned]
    title = f"Win rate against {base[0] if len(base) == 1 else 'the base'} in %, with 95 % interval"
    tables = [model_table(rows, key, models) for key in ("mean", "median", "mean_of_categories")]
    tables.append(model_table(rows, "win_rate", [model for model in models if model in tuned], title))
    return [table for table in tables if table.columns] + category_tables(rows)


def format_table(rows: Rows, marks: bool = True) -> str:
    """The rows as Markdown tables, under the number of prompts and the sets; `marks`: best bold, second underlined."""
    counts = [row["n"] for row in rows if row.get("category") is None]
    sets = [name for name in distinct(rows, "prompts") if name]
    n = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    head = f"{n} prompts" + (f" of {markdown_text(', '.join(sets))}" if sets else "") + "."
    return "\n\n".join([head, *(to_markdown(table, marks) for table in all_tables(rows))]) + "\n"


def format_latex(rows: Rows) -> str:
    """The same tables as LaTeX, for the package booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(map(to_latex, all_tables(rows))) + "\n"


def format_csv(rows: Rows) -> str:
    """Every row with all its numbers, raw and not rounded, one line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([csv_text(row.get(column)) for column in CSV_COLUMNS] for row in rows)
    return buffer.getvalue()


def check_table(checks: Rows) -> tuple[Table, list[str]]:
    """One line per check and prompt set, one column per model, limits last for narrow screens; why cells are empty."""
    models, sets = distinct(checks, "model"), distinct(checks, "prompts")
    lines: dict[str, dict[str | None, str]] = {}  # a check's text by model, and its limit under None
    skipped: dict[str, list[str]] = {}  # reason -> prompt sets, which are named where they are not all
    for check in checks:
        prompts, value = check.get("prompts"), check["value"]
        line = lines.setdefault(f"{check['alarm']}, {prompts}" if len(sets) > 1 else check["alarm"], {})
        if value is None:
            skipped.setdefault(check["message"], []).append(prompts)
            continue
        before = "" if check["base"] is None else f"{check['base']:.3g} to "  # the base's value to the tuned model's
        line[check["model"]] = f"{before}{value:.3g}{' ALARM' if check['fired'] else ''}"
        line.setdefault(None, check["limit"])
    cells = [(name, [Cell(line.get(key, "-")) for key in (*models, None)]) for name, line in lines.items()]
    notes = [text if len(own) == len(sets) else f"{text} ({', '.join(own)})" for text, own in skipped.items()]
    return Table("Check", [*models, "limit"], cells), notes


def format_checks(checks: Rows) -> str:
    """The checks against reward hacking as Markdown; below, as a list, what was not checked and why."""
    table, notes = check_table(checks)
    return to_markdown(table) + "\n" + "".join(["\n" * bool(notes), *(f"- {markdown_text(note)}\n" for note in notes)])
