# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Command-line flags out of dataclasses: a field's name, type and default, and its text in the class's docstring."""

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple


class Flag(NamedTuple):
    """A field as the command line has it."""

    name: str
    kind: dict[str, Any]  # what `add_argument` is told of the values: `type`, `choices`, `nargs`, `metavar`
    default: Any  # `dataclasses.MISSING` where one must be given
    text: str
    group: str


def option(default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A dataclass field with what its type does not say: `group` of the help, `choices`, `metavar`, or a `role`."""
    return dataclasses.field(default=default, metadata=metadata)


def flags_of(cls: type) -> Iterator[Flag]:
    """The fields of a dataclass that a flag can set: numbers, texts, switches, `Literal`s and tuples of one type."""
    hints, texts = typing.get_type_hints(cls), _texts(cls)
    for field in dataclasses.fields(cls):
        kind = _kind(hints[field.name])
        if kind is None:
            continue
        if field.name not in texts:
            raise TypeError(f"{cls.__name__}.{field.name}: expected a text under Args in the docstring, found none")
        kind |= {name: field.metadata[name] for name in ("choices", "metavar") if name in field.metadata}
        yield Flag(field.name, kind, field.default, texts[field.name], field.metadata.get("group", ""))


def add_fields(parser: argparse.ArgumentParser, cls: type, without: Collection[str] = ()) -> None:
    """Declares a flag for each field of a dataclass but for fields and groups in `without`, in the fields' groups."""
    groups = {group.title: group for group in parser._action_groups}
    for flag in flags_of(cls):
        if flag.name in without or flag.group in without:
            continue
        if flag.group and flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        required = flag.default is dataclasses.MISSING
        add_flag(groups.get(flag.group, parser), flag, {"required": True} if required else {"default": flag.default})


def add_flag(parser: Any, flag: Flag, options: Mapping[str, Any]) -> None:
    """Declares one flag in a parser or group; `options` go to `add_argument`, too."""
    kind = flag.kind
    if kind.get("type") is bool:  # a switch that is on gets a --no-NAME, too
        off = options.get("default") is False
        kind = {"action": "store_true" if off else argparse.BooleanOptionalAction}
    parser.add_argument(f"--{flag.name}", **kind, **{"help": flag.text.replace("%", "%%")} | options)


def from_args(cls: type, args: argparse.Namespace) -> Any:
    """The dataclass as the flags of `add_fields` say; fields without a flag keep their default."""
    return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)})


def _kind(hint: Any) -> dict[str, Any] | None:
    """What `add_argument` needs for a type, or `None` for one that no flag can set."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    if hint in (int, float, str, bool):
        return {"type": hint}
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": parts}
    if typing.get_origin(hint) is tuple and len({*parts}) == 1:
        return {"type": parts[0], "nargs": len(parts)}
    return None


def _texts(cls: type) -> dict[str, str]:
    """Field name to its description, from the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        arguments = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.M | re.S)
        entries = r"^ {4}(\w+(?:, \w+)*) \([^\n]*?\): (.*?)(?=^ {4}\w|\Z)"
        for names, text in re.findall(entries, arguments[1] if arguments else "", re.M | re.S):
            for name in names.split(", "):
                texts[name] = " ".join(text.split()).replace("`", "")
    return texts
