# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The options of objectives as flags of one script, where several objectives share them."""

import argparse
from collections.abc import Sequence

from ..core.flags import Flag, add_flag, flags_of
from ..errors import UserError
from ..models.families import FAMILIES
from ..objectives.base import Objective
from ..rewards.settings import RewardSettings, parse_reward_weights
from .loop import DEFAULT_REWARDS


def add_objective_options(parser: argparse.ArgumentParser, kinds: Sequence[type[Objective]]) -> None:
    """Declares a flag for every field of the objectives, with its default and the text of its docstring.

    Fields that several objectives share become one flag without a default, so that each keeps its own.
    """
    group = parser.add_argument_group("objective's options")
    flags: dict[str, Flag] = {}
    texts: dict[str, dict[str, list[str]]] = {}  # field -> what it says -> names of the objectives that say so
    for kind in kinds:
        for flag in flags_of(kind):
            others = {kind.family_defaults(b.name).get(flag.name, flag.default): name for name, b in FAMILIES.items()}
            shown = ", ".join(f"{value} for {name}" for value, name in others.items())
            text = f"{flag.text} Default: {shown if len(others) > 1 else flag.default}."
            texts.setdefault(flag.name, {}).setdefault(text, []).append(kind.__name__)
            flags[flag.name] = flag
    for name, lines in texts.items():
        parts = [text if len(names) == len(kinds) else f"{', '.join(names)}: {text}" for text, names in lines.items()]
        add_flag(group, flags[name]._replace(text=" ".join(parts)), {"default": None})


def objective_from_args(
    kind: type[Objective], args: argparse.Namespace, kinds: Sequence[type[Objective]]
) -> Objective:
    """The objective that the flags describe; what they leave open is the paper's for `--backbone`, else the default.

    Raises:
        UserError: if a flag of another objective was given, or one that the objective has no use for.
    """
    own = {flag.name for flag in flags_of(kind)}
    for other in kinds:
        for flag in flags_of(other):
            if flag.name not in own and getattr(args, flag.name) is not None:
                raise UserError(f"--{flag.name}: expected an option of {kind.__name__}, found one of {other.__name__}")
    given = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    return kind(**kind.family_defaults(FAMILIES[args.backbone].name) | given)


def rewards_from_args(args: argparse.Namespace) -> tuple[list[str], RewardSettings]:
    """What the flags of `add_reward_arguments` give to `train`."""
    return args.rewards, RewardSettings.from_args(args, list(parse_reward_weights(args.rewards or DEFAULT_REWARDS)))
