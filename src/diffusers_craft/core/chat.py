# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A client of a chat service that speaks OpenAI's protocol."""

import os
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError


def open_client(flag: str, base_url: str | None, api_key_env: str | None = None) -> tuple[Any, str, str]:
    """A client of a service that speaks OpenAI's chat protocol; it tries once, retries are the caller's.

    Args:
        flag (`str`): for error texts.
        base_url (`str`, *optional*): e.g. `http://localhost:11434/v1`; defaults to OpenAI's own.
        api_key_env (`str`, *optional*): environment variable that holds the key; defaults to `DASHSCOPE_API_KEY` for
            DashScope and `OPENAI_API_KEY` elsewhere.

    Returns:
        `tuple`: the client, its address without secrets, and the name of the key's variable.

    Raises:
        UserError: if the package or the key is missing.
    """
    try:
        import openai
    except ImportError:
        raise UserError(f"{flag}: expected the package openai, found none; pip install openai") from None
    key_name = api_key_env or ("DASHSCOPE_API_KEY" if "dashscope" in (base_url or "") else "OPENAI_API_KEY")
    key = os.environ.get(key_name)
    if not key and (api_key_env or not base_url):
        raise UserError(f"{flag}: expected a key in the environment variable {key_name}, found none")
    timeout = openai.Timeout(60.0, connect=5.0)
    # Local servers want some key and ignore it.
    client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=timeout)
    return client, _without_secrets(base_url) if base_url else "https://api.openai.com/v1", key_name


def _without_secrets(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
