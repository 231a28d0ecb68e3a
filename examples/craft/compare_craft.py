#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Puts the results of several evaluations into one table; refuses to mix settings that do not compare.

python compare_craft.py sdxl=outputs/evaluation spo=outputs/evaluation-spo --output_dir outputs/comparison
"""

# /// script
# dependencies = [
#     "diffusers-craft",
# ]
# ///

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from diffusers_craft import UserError, compare_results
from diffusers_craft.scripts import load_results, run_script, write_comparison


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", help="results.json or the folder that holds it; NAME=PATH names it in errors and tables."
    )
    parser.add_argument("--statistic", default="mean", help="mean, median, mean_of_categories or win_rate.")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="Settings that may differ, by the names in the error text, e.g. guidance_scale; all for any. The table says "
        "which did.",
    )
    parser.add_argument("--output_dir", required=True, help="Receives comparison.md, .csv, .tex and .json.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    results = {}
    for text in args.results:
        name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        place = Path(os.path.abspath(path))  # the current folder has a name, too
        name = name or (place.parent.name if place.name == "results.json" else place.name.removesuffix(".json"))
        if not name or not path:
            raise UserError(f"results: expected PATH or NAME=PATH, found {text!r}")
        if name in results:
            raise UserError(f"results: expected files of distinct names, found {name!r} twice; write NAME=PATH")
        results[name] = load_results(path)
    print(write_comparison(args.output_dir, compare_results(results, args.statistic, args.allow)))


if __name__ == "__main__":
    run_script(main, parse_args())
