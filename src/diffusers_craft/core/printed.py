# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""How reports and cards print a metric: in the unit of the papers. Files for machines keep the raw score."""

import math


PRINTED_TIMES = {"hps_v2.1": 100, "geneval": 100}  # raw score to the number that papers print


def metric_label(metric: str) -> str:
    """A metric's column title: with the factor by which it is printed."""
    return f"{metric} x{PRINTED_TIMES[metric]}" if metric in PRINTED_TIMES else metric


def printed_score(metric: str, value: float) -> str:
    """A raw score in the scale of the papers; a dash for none."""
    return f"{value * PRINTED_TIMES.get(metric, 1):.4g}" if math.isfinite(value) else "–"
