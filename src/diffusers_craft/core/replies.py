# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a language model wraps around what was asked for: thoughts, code fences, characters that no file can hold."""

import re


# Reasoning models behind services without a reasoning parser; their chat templates often open the tag in the prompt, so a
# reply may hold the closing one alone. `[THINK]` is Mistral's, the triangles are Kimi's, channels are gpt-oss's.
_NAMES = r"(?:think|thinking|thoughts?|reasoning|reflection)"
_CLOSING = re.compile(rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_OPENING = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|channel\|>(?:analysis|commentary)<\|message\|>", re.IGNORECASE
)
_SPECIAL = re.compile(r"<\|[\w ]+\|>")
_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)(?:```|$)|```([^`\n]*)```", re.DOTALL)


def without_thoughts(text: str) -> str:
    """The reply after its last thought; an unfinished thought is no reply. Lone surrogates, which no file takes, go."""
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = _CLOSING.split(text)[-1]
    return _SPECIAL.sub(" ", _OPENING.split(text)[0]).strip()


def without_fences(text: str) -> str:
    """What the first code fence holds, where there is one."""
    found = _FENCE.search(text)
    return (found[1] or found[2] or "").strip() if found else text
