"""One question to a model behind an OpenAI-compatible chat endpoint: with a deadline, retries, and a key never shown.

The API key is read from the environment at each call and kept nowhere; whatever the server says is cleared of it. A
redirect is not followed, because the key would travel along.
"""

import http.client
import json
import math
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
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


class ConversationRejected(EndpointFailed):
    """The server is there and rejects this conversation, because it is too long for the model, for instance."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _Line(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """The connection of one request, which can be cut whatever the server is sending just then.

    (A socket's own limit starts anew with every byte.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self._socket: socket.socket | None = None

    def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> Any:
        def connection(host: str, **arguments: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(host, **arguments)
            made.connect = self._watched(made, made.connect)
            return made

        return super().do_open(connection, req, **http_conn_args)  # type: ignore[arg-type]

    def _watched(self, made: http.client.HTTPConnection, connect: Callable[[], None]) -> Callable[[], None]:
        def connect_and_remember() -> None:
            connect()
            self._socket = made.sock
            if self.is_cut:
                raise TimeoutError

        return connect_and_remember

    def cut(self) -> None:
        self.is_cut = True
        if self._socket:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@dataclass(frozen=True)
class ChatEndpoint:
    """Where a judge is asked.

    Args:
        base_url: such as "http://127.0.0.1:8000/v1"; `/chat/completions` is added.
        model: the model's name there.
        api_key_env: name of the environment variable that holds the key; `None` for a server that wants none.
        timeout_s: seconds for one attempt, from connecting to the answer's last byte, > 0.
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
        if not _is_plain_address(self.base_url):
            raise ValueError(
                "expected base_url as http(s)://host[:port]/path, without a user, password or query, got another form "
                "(not shown here): put a key into an environment variable and name it in api_key_env"
            )
        is_in_range = 0 < self.timeout_s < math.inf and 0 <= self.backoff_s < math.inf
        if not is_in_range or self.retries < 0 or self.max_tokens < 1:
            raise ValueError(
                "expected timeout_s > 0, retries >= 0, backoff_s >= 0 and max_tokens >= 1, got "
                f"{self.timeout_s}, {self.retries}, {self.backoff_s} and {self.max_tokens}"
            )
        self._key()

    @property
    def patience_s(self) -> float:
        """Seconds after which `ask` has given up, all attempts and the waits between them."""
        return (self.retries + 1) * self.timeout_s + sum(self._wait_s(retry) for retry in range(self.retries))

    def ask(self, messages: Messages) -> str | None:
        """The answer to a conversation, at temperature 0; `None` if it was cut off at `max_tokens`.

        Raises:
            EndpointRefused: if the server refuses in a way that every call will meet.
            EndpointFailed: if no attempt brought an answer; ConversationRejected: if this conversation is the reason.
        """
        self._key()  # outside of what is tried again
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self._wait_s(attempt - 1))
            answer, problem = self._attempt(messages)
            if not problem:
                return answer
        raise EndpointFailed(f"expected an answer of {self.base_url} within {self.retries + 1} attempts, got {problem}")

    def _wait_s(self, retry: int) -> float:
        return min(60.0, self.backoff_s * 2**retry)

    def _attempt(self, messages: Messages) -> tuple[str | None, str]:
        """The answer and an empty string, or what went wrong and may pass."""
        try:
            status, reason, body = self._post(messages)
            if status == 200:
                return _content(body), ""
        except (OSError, http.client.HTTPException) as error:  # refused, reset, too slow, not HTTP
            return None, self._cleared(f"{type(error).__name__}: {error}")
        except (ValueError, RecursionError) as error:  # not the JSON of a chat completion
            return None, self._cleared(f"an unreadable answer ({type(error).__name__}: {error})")
        problem = self._cleared(f"status {status} {reason}: {body[: 1 << 16].decode(errors='replace')}")
        if status in MISCONFIGURED or status < 400:
            raise EndpointRefused(
                f"expected {self.base_url} to answer for model {self.model!r}, got {problem}; correct base_url, "
                f"model or the key in the variable that api_key_env names ({self.api_key_env})"
            )
        if status < 500 and status not in PASSING:
            raise ConversationRejected(f"expected {self.base_url} to take the conversation, got {problem}")
        return None, problem

    def _post(self, messages: Messages) -> tuple[int, str, bytes]:
        """Status, its reason and the body, of whatever kind."""
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        line = _Line()
        timer = threading.Timer(self.timeout_s, line.cut)
        timer.start()
        too_slow = TimeoutError(f"timed out: the whole answer took longer than {self.timeout_s} s")
        try:
            with _opened(line, request, self.timeout_s) as response:
                found = response.status, response.reason, response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise (too_slow if line.is_cut else error) from None
        finally:
            timer.cancel()
        if line.is_cut:  # in the middle of a body whose end the server had not announced
            raise too_slow
        return found

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


def _is_plain_address(text: str) -> bool:
    """Whether it is http(s)://host[:port]/path and nothing more."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if not text.isprintable() or " " in text or port == 0 or parts.scheme not in {"http", "https"}:
        return False
    return bool(parts.hostname) and not (parts.username or parts.password or parts.query or parts.fragment)


def _opened(line: _Line, request: urllib.request.Request, timeout_s: float) -> Any:
    """The response, an error's too."""
    try:
        return urllib.request.build_opener(_NoRedirect, line).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        return error


def _content(body: bytes) -> str | None:
    """The text of a chat completion; `None` if it was cut off."""
    if len(body) > MAX_ANSWER_BYTES:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
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
