# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A client of a chat service that speaks OpenAI's protocol, as far as each service does."""

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from itertools import product
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError


logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # wait before the second try; doubles with each further one
MAX_WAIT = 60.0  # seconds between two tries at a service that limits requests, where it does not say how long
MAX_LIMITED = 900.0  # seconds of limited requests without one answer after which the service counts as silent
# Parts of a request that some services refuse (Mistral and Gemini `seed`, Gemma the system's role), by what is left out.
_SIMPLER = ((), ("seed",), ("system",), ("seed", "system"), ("seed", "system", "temperature"))
# Distinct texts, refused in every form before the first answer, that end the run: more than are asked for at once.
_REFUSALS = 10


def back_off(attempt: int) -> None:
    """Waits before try number `attempt`, longer each time; the first is number 0, and needs no wait."""
    if attempt:
        time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))


class ChatClient:
    """One model of a chat service. It tries once, but for limits, which it waits out, and forms that are refused.

    `flag` is for error texts; the key comes from the environment variable `api_key_env`, by default `DASHSCOPE_API_KEY` for
    DashScope and `OPENAI_API_KEY` elsewhere, and is never stored. `response_formats` are values of `response_format`, `{}`
    for none. A form of request that the service refuses is followed by a simpler one, and what it takes is remembered.
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
        timeout = openai.Timeout(60.0, connect=5.0)
        # Local servers want some key and ignore it.
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=timeout)
        self._flag, self._key_name, self._has_key = flag, key_name, bool(key)
        self._forms = list(product(_SIMPLER, response_formats))
        self._lock, self._answered, self._refused = threading.Lock(), False, set()
        self._resume_at, self._limited_since = 0.0, None  # of a service that limits requests, for all threads
        self.model = model
        self.endpoint = _without_secrets(base_url) if base_url else "https://api.openai.com/v1"
        self.problem: str | None = None  # why there was no answer, the last time

    @property
    def answered(self) -> bool:
        """Whether the service has answered anything."""
        return self._answered

    def ask(self, instruction: str, content: Any, seed: int, temperature: float) -> str | None:
        """One reply's text; `""` if the service refuses this content or cuts its reply, `None` if it gives no answer.

        `instruction` is the system's message, `content` the user's (a text or a list of parts); `seed` counts modulo 2**31.
        What no other request will change is a `UserError`: a key, model or credit that is refused, an address that serves
        something else, or requests refused in every form.
        """
        import openai

        options = {"seed": seed % 2**31, "temperature": temperature}
        refusal = None
        for form in list(self._forms):
            try:
                text = self._send(form, instruction, content, options)
            except openai.APIStatusError as error:
                refusal = error
                if self._answered and form in self._forms:
                    break  # the form is one that it takes, so it is this very content
                continue
            if text is not None:
                with self._lock:
                    self._answered = True
                    self._refused.clear()
                    if form in self._forms:  # another thread may have gone further
                        self._forms = self._forms[self._forms.index(form) :]
            return text
        with self._lock:
            self._refused.add(hash(str(content)))
            self.problem = self._reason(refusal)
            if len(self._refused) >= _REFUSALS and (not self._answered or refusal.status_code == 403):
                raise self._error(refusal)
        return ""

    def _send(self, form: tuple, instruction: str, content: Any, options: dict[str, Any]) -> str | None:
        """One answer, once the service's limits allow it; a refusal of the request is openai's own error."""
        import openai

        left_out, response_format = form
        options = {name: value for name, value in options.items() if name not in left_out}
        options |= {"response_format": response_format} if response_format else {}
        for attempt in range(10**6):
            time.sleep(max(0.0, self._resume_at - time.monotonic()))
            try:
                messages = _messages(instruction, content, "system" not in left_out)
                reply = self._client.chat.completions.create(model=self.model, messages=messages, **options)
                self._limited_since = None
                return self._text(reply.choices[0])
            except openai.RateLimitError as error:
                if self._has_no_credit(error):
                    raise self._error(error) from None
                self.problem = self._reason(error)
                if not self._wait_for_limit(error, attempt):
                    return None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._has_no_credit(error):
                    raise self._error(error) from None
                raise
            except openai.APIStatusError as error:
                if self._answered and error.status_code in (403, 413) and not self._has_no_credit(error):
                    raise  # a service that answered others: this very content is flagged, or too long
                if error.status_code < 500 and error.status_code not in (408, 409, 425):
                    raise self._error(error) from None
                self.problem = self._reason(error)
                return None
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError) as error:
                self.problem = f"{type(error).__name__}, no chat reply"  # unreachable, or another kind of server
                return None

    def _wait_for_limit(self, error: Any, attempt: int) -> bool:
        """Sets the time at which all threads go on, as the service asks; false once it has limited for too long."""
        try:
            seconds = float(error.response.headers.get("retry-after"))
        except (TypeError, ValueError):  # none, or a date
            seconds = math.nan
        if MAX_LIMITED < seconds < math.inf:  # a limit per day
            raise self._error(error, f", to be waited out for {seconds:.0f} s; the same command goes on then")
        if not math.isfinite(seconds) or seconds <= 0:
            seconds = min(RETRY_SECONDS * 2 ** min(attempt, 10), MAX_WAIT)
        now = time.monotonic()
        with self._lock:
            self._limited_since = self._limited_since or now
            self._resume_at = max(self._resume_at, now + seconds)
            return now - self._limited_since < MAX_LIMITED

    def _text(self, choice: Any) -> str | None:
        """The text of a whole reply; `""` for one that ends at a limit of tokens, perhaps in the middle of a thought."""
        text = choice.message.content or ""
        if getattr(choice, "finish_reason", None) == "length":
            self.problem = "a reply that was cut at a limit of tokens"
            return ""
        return text if isinstance(text, str) else None

    def _has_no_credit(self, error: Any) -> bool:
        """Whether no waiting and no other text helps: the account is empty."""
        names = {str(getattr(error, "code", None)), str(getattr(error, "type", None))}
        ended = {"Arrearage", "AllocationQuota.FreeTierOnly"}  # DashScope's
        if "aliyuncs" not in self.endpoint:  # where the limit per minute has this name
            ended.add("insufficient_quota")
        return bool(names & ended)

    def _error(self, error: Any, more: str = "") -> UserError:
        expected = f"expected {self.endpoint} to serve {self.model!r} with the key of {self._key_name}"
        return UserError(f"{self._flag}: {expected}, found {self._reason(error)}{more}")

    def _reason(self, error: Any) -> str:
        """The service's own reason in one line, without the key, of which refused ones may quote parts."""
        body = "" if error.status_code == 401 else error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body.get("error")
        message = "" if body is None or str(body).lstrip().startswith("<") else body  # a page of HTML says nothing
        text = " ".join(str(message).split())
        if self._has_key:  # else a word that stands for one
            text = text.replace(self._client.api_key, "***")
        return f"HTTP status {error.status_code}" + (f" ({text:.200})" if text else "")


def _messages(instruction: str, content: Any, with_system: bool) -> list[dict[str, Any]]:
    """The two messages, or one where a service knows no system."""
    if with_system:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": content}]
    if isinstance(content, str):
        return [{"role": "user", "content": f"{instruction}\n\n{content}"}]
    return [{"role": "user", "content": [{"type": "text", "text": instruction}, *content]}]


def _without_secrets(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
