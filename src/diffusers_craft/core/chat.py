# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A client of a chat service that speaks OpenAI's protocol."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError


logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # wait before the second try; doubles with each further one


def back_off(attempt: int) -> None:
    """Waits before try number `attempt`, longer each time; the first, number 0, needs no wait."""
    if attempt:
        time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))


class ChatClient:
    """One model of a chat service, which never tries twice by itself; its key is in the environment, and never stored.

    A value of `response_format` that the service refuses is followed by the next, `{}` for none.
    """

    def __init__(
        self,
        flag: str,
        model: str,
        base_url: str | None = None,
        api_key_env: str | None = None,
        response_formats: Sequence[dict[str, Any]] = ({},),
    ):
        try:
            import openai
        except ImportError:
            raise UserError(f"{flag}: expected the package openai, found none; pip install openai") from None
        key_name = api_key_env or ("DASHSCOPE_API_KEY" if "dashscope" in (base_url or "") else "OPENAI_API_KEY")
        key = os.environ.get(key_name)
        if not key and (api_key_env or not base_url):
            raise UserError(f"{flag}: expected a key in the environment variable {key_name}, found none")
        self._openai, timeout = openai, openai.Timeout(60.0, connect=5.0)
        # Local servers want some key and ignore it.
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=timeout)
        self.model, self._flag, self._key_name, self._formats = model, flag, key_name, list(response_formats)
        parts = urlsplit(base_url or "https://api.openai.com/v1")
        public = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")  # no user, no password
        self.endpoint = public.geturl()

    def ask(self, instruction: str, content: Any, seed: int, temperature: float) -> str | None:
        """A reply to a text or list of parts; `""` if the service refuses just this content, `None` without answer."""
        openai = self._openai
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": content}]
        options = {"model": self.model, "messages": messages, "temperature": temperature, "seed": seed % 2**31}
        for form in self._formats:
            try:
                reply = self._client.chat.completions.create(**options, **({"response_format": form} if form else {}))
                text = reply.choices[0].message.content or ""
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise UserError(
                    f"{self._flag}: expected {self.endpoint} to serve {self.model!r} with the key of {self._key_name},"
                    f" found HTTP status {error.status_code}"
                ) from None
            except openai.BadRequestError:
                continue  # the form, or this very content
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError) as error:
                # Unreachable, overloaded, or no chat reply. The text of an error may quote the key.
                logger.debug("%s: %s", self.endpoint, type(error).__name__)
                return None
            if form in self._formats:  # another thread may have gone further
                self._formats = self._formats[self._formats.index(form) :]
            return text if isinstance(text, str) else None
        return ""
