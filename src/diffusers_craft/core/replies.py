# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a language model wraps around what was asked for: thoughts, code fences, characters that no file can hold."""

import re


# Reasoning models behind services without a reasoning parser; their chat templates often open the tag in the prompt, so a
# reply may hold the closing one alone. `[THINK]` is Mistral's, the triangles are Kimi's, channels are gpt-oss's.
_NAMES = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection)"
_CLOSING = re.compile(
    rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
_OPENING = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>(?:analysis|commentary)<\|message\|>",
    re.IGNORECASE,
)
# gpt-oss's channels where a service took their marks away.
_BARE = re.compile(r"^(?:analysis|commentary)(?=[A-Z]).*assistant\s?final(?=\S)", re.DOTALL)
_SPECIAL = re.compile(r"<\|[\w ]+\|>")
_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)(?:```|$)|```([^`\n]*)```", re.DOTALL)


def without_thoughts(text: str) -> str:
    """The reply after its last thought; an unfinished thought is no reply. Lone surrogates, which no file takes, go."""
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = _CLOSING.split(_BARE.sub("", text))[-1]
    return _SPECIAL.sub(" ", _OPENING.split(text)[0]).strip()


def opens_thought(text: str) -> bool:
    """Whether a chat's text, as a model is given it, ends inside a thought that the model goes on with."""
    return bool(_OPENING.search(text.rstrip()[-30:])) and not _CLOSING.search(text.rstrip()[-30:])


def without_fences(text: str) -> str:
    """What the first code fence holds, where there is one."""
    found = _FENCE.search(text)
    return (found[1] or found[2] or "").strip() if found else text
