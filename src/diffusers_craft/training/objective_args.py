# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of the scripts that train with other objectives than CRAFT's; an objective's own come from its fields."""

import argparse
import dataclasses
import re
import typing
from collections.abc import Sequence

from ..errors import UserError
from ..models.families import BACKBONES
from ..objectives.base import Objective
from ..objectives.inpo import InPO
from ..selection.pairing import PAIRINGS
from .args import add_training_arguments


_FLAG_TYPES = (int, float, str, bool)


def add_alignment_arguments(
    parser: argparse.ArgumentParser, input_args: Sequence[str] | None, learning_rate: float
) -> None:
    """Declares `--backbone`, the flags that all training scripts share with that family's defaults, and the data's.

    Args:
        parser (`argparse.ArgumentParser`): receives the flags.
        input_args (`Sequence[str]`, *optional*): what will be parsed, to look up `--backbone`.
        learning_rate (`float`): default of `--learning_rate`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--backbone", choices=BACKBONES, default="sd15", help="Family of the model.")
    known, _ = first.parse_known_args(input_args)
    parser.add_argument("--backbone", choices=BACKBONES, default="sd15", help="Family of the model.")
    parser.add_argument("--pretrained_vae_model_name_or_path", help="Another VAE than the model's own.")
    add_training_arguments(parser, BACKBONES[known.backbone], weighted_denoising=False)
    parser.set_defaults(learning_rate=learning_rate)
    group = parser.add_argument_group("preferences")
    group.add_argument(
        "--pairing",
        choices=PAIRINGS,
        default="best_worst",
        help="Pairs of a build's folder: the best against the worst image of a prompt, or the best refined one against"
        " the image of the original prompt.",
    )
    group.add_argument(
        "--num_pairs",
        type=int,
        help="Only the pairs with the best winners, by the scores of a build or of a dataset; the default is all.",
    )
    group.add_argument(
        "--score_range",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="SmPO: lowest and highest score, which scale its factors; the default is those of all images of the data.",
    )


def add_objective_options(parser: argparse.ArgumentParser, kinds: Sequence[type[Objective]]) -> None:
    """Declares a flag for every field of the objectives, with its default and the text of its docstring.

    Fields that several objectives share become one flag without a default, so that each keeps its own.
    """
    group = parser.add_argument_group("objective's options")
    texts: dict[str, dict[str, list[str]]] = {}  # field -> what it says -> names of the objectives that say so
    types: dict[str, type] = {}
    for kind in kinds:
        about = _argument_texts(kind)
        for name, flag_type, default in _options(kind):
            others = {_backbone_defaults(kind, backbone).get(name, default): backbone for backbone in BACKBONES}
            shown = ", ".join(f"{value} for {backbone}" for value, backbone in others.items())
            text = f"{about.get(name, '')} Default: {shown if len(others) > 1 else default}.".strip()
            texts.setdefault(name, {}).setdefault(text, []).append(kind.__name__)
            types[name] = flag_type
    for name, lines in texts.items():
        parts = [text if len(names) == len(kinds) else f"{', '.join(names)}: {text}" for text, names in lines.items()]
        about = " ".join(parts).replace("%", "%%")
        if types[name] is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            group.add_argument(f"--{name}", type=types[name], help=about)


def objective_from_args(
    kind: type[Objective], args: argparse.Namespace, kinds: Sequence[type[Objective]]
) -> Objective:
    """The objective that the flags describe; what they leave open is the paper's for `--backbone`, else the default.

    Raises:
        UserError: if a flag of another objective was given, or one that the objective has no use for.
    """
    own = {name for name, _, _ in _options(kind)}
    for other in kinds:
        for name, _, _ in _options(other):
            if name not in own and getattr(args, name) is not None:
                raise UserError(f"--{name}: expected an option of {kind.__name__}, found one of {other.__name__}")
    given = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    objective = kind(**_backbone_defaults(kind, args.backbone) | given)
    if objective.own_noise and args.noise_offset:
        expected = f"expected 0 for {kind.__name__}, which does not train on the noise that gets it"
        raise UserError(f"--noise_offset: {expected}, found {args.noise_offset}")
    return objective


def _backbone_defaults(kind: type[Objective], backbone: str) -> dict[str, object]:
    """Options that the papers set for each family of models."""
    return {"beta": BACKBONES[backbone].inversion_beta} if issubclass(kind, InPO) else {}


def _options(kind: type[Objective]) -> list[tuple[str, type, object]]:
    """Name, type and default of the fields that a flag can set."""
    hints = typing.get_type_hints(kind)
    found = [(field.name, hints[field.name], field.default) for field in dataclasses.fields(kind)]
    return [option for option in found if option[1] in _FLAG_TYPES]


def _argument_texts(kind: type[Objective]) -> dict[str, str]:
    """Field name to its description, from the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        pattern = r"^ {8}(\w+) \([^\n]*?\): (.*?)(?=^ {8}\w+ \(|\Z)"
        for name, text in re.findall(pattern, base.__doc__ or "", re.M | re.S):
            texts[name] = " ".join(text.split()).replace("`", "")
    return texts
