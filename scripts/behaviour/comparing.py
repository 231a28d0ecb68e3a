# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What differs between two records."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .jobs import fits


SHOWN = 40  # characters of a value in the table of differences
NUMBERS = (int, float, type(None))


def compare(before: Path, after: Path, only: Sequence[str]) -> int:
    """Prints what differs between two records; returns the exit code."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    for name in sorted(one["about"] | other["about"]):
        found = one["about"].get(name), other["about"].get(name)
        if found[0] != found[1] and name != "commit":
            print(f"note: {name} was {found[0]} before, is {found[1]} after")
    keys = [key for key in one["results"] | other["results"] if fits(key, only)]
    lines, different = [], 0
    for key in keys:
        found = differences(one["results"].get(key), other["results"].get(key))
        lines += [(f"{key}: {name}" if name else key, *values) for name, *values in found]
        different += bool(found)
    if lines:
        print_table([("name", "before", "after", "largest difference"), *lines])
    print(f"{different} of {len(keys)} entries differ, in {len(lines)} places")
    return int(bool(lines))


def differences(before: Any, after: Any) -> list[tuple[str, str, str, str]]:
    """Name, both values and, where they are numbers, the largest difference."""
    if before is None or after is None:
        return [] if before is after else [("", *("absent" if v is None else "there" for v in (before, after)), "")]
    if "error" in before or "error" in after:  # then nothing else is there to compare
        values = [side.get("error", "no error") for side in (before, after)]
        return [] if values[0] == values[1] else [("error", *values, "")]
    one, other = dict(leaves(before)), dict(leaves(after))
    found = []
    for name in one | other:
        values = [side.get(name, "absent") for side in (one, other)]
        if repr(values[0]) != repr(values[1]):  # also tells NaN from numbers, and finds it equal to itself
            found.append((name, *difference(*values)))
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested JSON by its dotted name; lists of numbers stay whole."""
    is_numbers = isinstance(value, list) and value and all(isinstance(part, NUMBERS) for part in value)
    if not value or is_numbers or not isinstance(value, (dict, list)):
        yield name, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(part, f"{name} {key}".strip())


def difference(before: Any, after: Any) -> tuple[str, str, str]:
    """Both values for the table, of lists of numbers those that differ most, and by how much."""
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        number = all(isinstance(value, (int, float)) for value in (before, after))
        return shown(before), shown(after), f"{abs(after - before):.3g}" if number else ""
    gaps = [gap(one, other) for one, other in zip(before, after)]
    place, count = gaps.index(max(gaps)), sum(one > 0 for one in gaps)
    where = f"{gaps[place]:.3g} at {place}; {count} of {len(gaps)} differ"
    return shown(before[place]), shown(after[place]), where


def gap(one: float | None, other: float | None) -> float:
    if repr(one) == repr(other):
        return 0.0
    size = math.inf if one is None or other is None else abs(other - one)
    return math.inf if math.isnan(size) else size


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
