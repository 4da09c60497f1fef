"""One question to a model behind an OpenAI-compatible chat endpoint: with a deadline, retries, and a key never shown.

The API key is read from the environment at each call and kept nowhere; whatever the server says is cleared of it. A
redirect is not followed, because the key would travel along.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MISCONFIGURED = {401, 403, 404, 405}  # every call will meet them, as it will a redirect
PASSING = {408, 409, 425, 429}  # worth another attempt, as are all from 500 on
MAX_ANSWER_BYTES = 1 << 22
Messages = list[dict[str, str]]


class EndpointRefused(RuntimeError):
    """No call can succeed: wrong address, key or model."""


class EndpointFailed(RuntimeError):
    """This call got no answer, after all its attempts."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


@dataclass(frozen=True)
class ChatEndpoint:
    """Where a judge is asked.

    Args:
        base_url: such as "http://127.0.0.1:8000/v1"; `/chat/completions` is added.
        model: the model's name there.
        api_key_env: name of the environment variable that holds the key; `None` for a server that wants none.
        timeout_s: seconds for one attempt, > 0.
        retries: further attempts after a failed one.
        backoff_s: seconds before the first retry, doubled before each next one, at most 60.
        max_tokens: of an answer.

    Raises:
        ValueError: if the address is not plain http(s), the variable holds no usable key, or a number is out of range.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 1.0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.username
            or parts.password
            or parts.query
        ):
            raise ValueError(
                "expected base_url as http(s)://host[:port]/path, without a user, password or query, got another form "
                f"with scheme {parts.scheme!r}: put a key into an environment variable and name it in api_key_env"
            )
        if self.timeout_s <= 0 or self.retries < 0 or self.backoff_s < 0 or self.max_tokens < 1:
            raise ValueError(
                "expected timeout_s > 0, retries >= 0, backoff_s >= 0 and max_tokens >= 1, got "
                f"{self.timeout_s}, {self.retries}, {self.backoff_s} and {self.max_tokens}"
            )
        self._key()

    def ask(self, messages: Messages) -> str | None:
        """The answer to a conversation, at temperature 0; `None` if it was cut off at `max_tokens`.

        Raises:
            EndpointRefused: if the server refuses in a way that every call will meet.
            EndpointFailed: if no attempt brought an answer, or the server rejects this conversation.
        """
        self._key()  # outside of what is tried again
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(60.0, self.backoff_s * 2 ** (attempt - 1)))
            answer, problem = self._attempt(messages)
            if not problem:
                return answer
        raise EndpointFailed(f"expected an answer of {self.base_url} within {self.retries + 1} attempts, got {problem}")

    def _attempt(self, messages: Messages) -> tuple[str | None, str]:
        """The answer and an empty string, or what went wrong and may pass."""
        try:
            return _content(self._post(messages)), ""
        except urllib.error.HTTPError as error:
            problem = self._cleared(f"status {error.code} {error.reason}: {_said(error)}")
            if error.code in MISCONFIGURED or error.code < 400:
                raise EndpointRefused(
                    f"expected {self.base_url} to answer for model {self.model!r}, got {problem}; correct base_url, "
                    f"model or the key in the variable that api_key_env names ({self.api_key_env})"
                ) from None  # the cause may quote the key
            if error.code < 500 and error.code not in PASSING:
                raise EndpointFailed(f"expected {self.base_url} to take the conversation, got {problem}") from None
            return None, problem
        except (OSError, http.client.HTTPException) as error:  # refused, reset, too slow, not HTTP
            return None, self._cleared(f"{type(error).__name__}: {error}")
        except (ValueError, RecursionError) as error:  # not the JSON of a chat completion
            return None, self._cleared(f"an unreadable answer ({type(error).__name__}: {error})")

    def _post(self, messages: Messages) -> bytes:
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout_s
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as response:
            chunks, size = [], 0
            while chunk := response.read1(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if time.monotonic() > deadline:  # the socket's own limit starts anew with every byte
                    raise TimeoutError(f"the answer took longer than {self.timeout_s} s")
                if size > MAX_ANSWER_BYTES:
                    raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        return b"".join(chunks)

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"expected the API key in the environment variable {self.api_key_env!r}, got "
                f"{'characters that no key has' if key else 'nothing'}: set it before the run (it is not shown here)"
            )
        return key

    def _cleared(self, text: str) -> str:
        """The first words of `text`, cut after the key is out, so that no part of it stays."""
        key = self._key()
        return (text.replace(key, "[the API key]") if key else text)[:500]


def _content(body: bytes) -> str | None:
    """The text of a chat completion."""
    try:
        choice = json.loads(body)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no choices[0].message.content in {body.decode(errors='replace')}") from error
    if reason == "length":
        return None
    if not isinstance(text, str):
        raise ValueError(f"choices[0].message.content is {type(text).__name__}, not text")
    return text


def _said(error: urllib.error.HTTPError) -> str:
    """An error's body."""
    try:
        with error:
            return error.read(1 << 16).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "(nothing readable)"
