# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The one prompt that a language model's reply holds, whatever it says around it."""

import json
import re

from ..core.replies import without_fences, without_thoughts


MAX_WORDS = 60  # CLIP text encoders read 77 tokens

_KIND = r"(?:refined|rewritten|enhanced|improved|revised|final|new|detailed|optimi[sz]ed|image|text-to-image)"
_AGREES = r"(?:sure|certainly|of course|absolutely|okay|ok)"
_LABEL = re.compile(
    rf"^\W*(?:{_AGREES}\b[\s!,.]*)?"
    r"(?:(?:here(?:'s| is| are)?|below|the following|this is)\b[^:\n]*\b(?:prompt|description|version|rewrite|caption|go|it is)s?\b[^:\n]*:|"
    rf"(?:(?:the|your|my)\s+)?(?:{_KIND}\s+)*"
    r"(?:prompt|description|caption|version|rewrite|output|answer|option)s?(?:\s+\d)?(?:\s*\([^)\n]*\))?\W*:)[\s*_]*",
    re.IGNORECASE,
)
_ONLY_AGREES = re.compile(rf"\W*{_AGREES}\b[^:\n]{{0,100}}[.!]\W*", re.IGNORECASE)
_ANNOUNCES = re.compile(
    rf"\W*(?:{_AGREES}\b|(?:.*\W)?(?:prompt|description|version|rewrite|rewritten|caption|follows|go)s?\b).*:\W*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^#+\s+")
_ITEM = re.compile(r"^(?:[-*•]|\(?\d{1,2}[.)])\s+")
_NEXT_ITEM = re.compile(r"\s\(?2[.)]\s")
_REMARK = re.compile(
    r"^\W*(?:note|notes|explanation|(?:key )?changes|negative prompt|option 2|let me know|would you like|feel free|"
    r"if you(?:'d| would)|i hope|i've|this (?:prompt|version|rewrite))\b",
    re.IGNORECASE,
)
_INLINE_REMARK = re.compile(r"\s*[(\[]\s*(?:note|word count|\d+ words)\b[^)\]]*[)\]]\s*$", re.IGNORECASE)
_HELPS = (
    r"(?:feel comfortable|(?:\w+ly )?(?:help|assist|create|generate|write|rewrite|refine|provide|produce|make|comply|"
    r"fulfil+|support|continue|engage|process|describe|depict|offer|do (?:that|this)))"
)
_REFUSAL = re.compile(
    r"^(?:(?:i'?m|i am) (?:(?:very|so|really|truly|terribly) )?(?:sorry\b|afraid,? (?:but |that )?(?:i|this|that|we)\b)|"
    r"sorry[,.]? (?:but )?(?:i|that|this)\b|i apologi[sz]e|unfortunately,? i\b|as an ai\b|"
    r"i(?:'m| am) (?:unable|not able|not comfortable)\b|i'd rather not|this request |(?:i|we) must (?:\w+ )?decline|"
    rf"(?:i|we) (?:can(?:no|')t|can not|won't|will not|do(?: not|n't)) {_HELPS}\b)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
_KEYS = ("refined_prompt", "rewritten_prompt", "improved_prompt", "prompt", "description", "text")


def clean_reply(text: str) -> str:
    """The prompt of a language model's reply as one line of at most `MAX_WORDS` words; `""` if there is none.

    Thoughts, fences, JSON, preambles, labels, headings, remarks, list marks and enclosing quotes go; of a list the first
    item is taken; a refusal is no prompt.
    """
    text = _from_json(without_fences(without_thoughts(text)))
    lines = [line.strip() for line in text.splitlines() if line.strip(" -*_#=")]
    while len(lines) > 1 and (_HEADING.match(lines[0]) or _is_label(lines[0])):
        lines = lines[1:]
    for index, line in enumerate(lines[1:], start=1):
        if _REMARK.match(line) or (_ITEM.match(lines[0]) and _ITEM.match(line)):
            lines = lines[:index]
            break
    text = " ".join(lines)
    if _REFUSAL.match(_unquoted(text.replace("’", "'").strip("*"))):
        return ""
    if (item := _ITEM.match(text)) and item[0].strip("() .").isdigit():
        text = _NEXT_ITEM.split(text)[0]
    text = _INLINE_REMARK.sub("", _LABEL.sub("", _HEADING.sub("", _ITEM.sub("", text))))
    text = " ".join(text.replace("**", "").replace("__", "").split()[:MAX_WORDS])
    return _unquoted(text)


def _is_label(line: str) -> bool:
    """Whether a line says only that the prompt follows."""
    is_bare = _LABEL.sub("", line.rstrip("*_.! ") + ":") == ""
    return is_bare or bool(_ONLY_AGREES.fullmatch(line) or _ANNOUNCES.fullmatch(line))


def _from_json(text: str) -> str:
    """The prompt of a reply in JSON: under a key that says so, the only text, or the first of a list."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)  # words may follow
    except ValueError:
        return text
    if isinstance(found, dict):
        found = next((found[key] for key in _KEYS if key in found), list(found.values()))
    while isinstance(found, list):
        found = found[0] if found else ""
    if not isinstance(found, str) or text[:1] not in "{[":
        return text
    return found.encode("utf-8", "ignore").decode()  # half of an emoji may be written out in JSON


def _unquoted(text: str) -> str:
    closing = _QUOTES.get(text[:1])
    if closing is None or len(text) < 2 or text[-1] != closing:
        return text
    inner = text[1:-1]
    return text if text[0] in inner or closing in inner else inner.strip()
