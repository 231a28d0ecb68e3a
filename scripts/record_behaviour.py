#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Records what the example scripts compute on the embedded models, for refactorings that must not change it.

    python scripts/record_behaviour.py --output before.json --work work_before
    ... refactor ...
    python scripts/record_behaviour.py --output after.json --work work_after
    python scripts/record_behaviour.py compare before.json after.json

It goes through the example scripts and the files that they leave, and through nothing else of the package, whose modules
and classes may therefore move. The parts of a record are

    flags   every script's help and defaults
    build   datasets from prompts, with several selections
    train   every objective on both families, full and LoRA, and the options that take other ways through the code
    two     the same on two processes, and a build that two processes share
    demo    evaluations of what `train` left, a comparison of them, and scores of a folder of images

`--only train "two/sd15-dpo*"` takes parts or keys. Results are written as they come: the same command goes on where it
was interrupted and repeats what failed. `train`, `two` and `demo` need the folder `--work` with what `build` made.

Floats are kept as they are and weights as hashes of their bytes, so that two records agree only on the same kind of CPU
and with the same libraries; everything runs offline on one thread per process. Where checkout and work folder lie does not
matter. A whole record takes about eight minutes of one core and 400 MB.
"""

import argparse
import sys
from pathlib import Path

from behaviour.comparing import compare
from behaviour.running import record_all


def main() -> int:
    comparing = sys.argv[1:2] == ["compare"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if comparing:
        parser.add_argument("before", type=Path)
        parser.add_argument("after", type=Path)
    else:
        parser.add_argument("--output", type=Path, required=True, help="The record, a JSON file.")
        parser.add_argument("--work", type=Path, required=True, help="Folder of what the scripts write.")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="Parts or keys, also with * in them.")
    args = parser.parse_args(sys.argv[1 + comparing :])
    return compare(args.before, args.after, args.only) if comparing else record_all(args)


if __name__ == "__main__":
    sys.exit(main())
