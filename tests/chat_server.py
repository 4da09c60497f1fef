"""A chat endpoint on this machine for tests of judges: a real HTTP server whose answers and faults a test chooses."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kit.models.endpoint import ChatEndpoint

Answer = str | tuple[int, str]  # a text, or a status and a raw body


@dataclass
class Server:
    """A chat endpoint on this machine: `answer` turns the question into what is sent back."""

    answer: Callable[[str], Answer] = lambda question: "Fine.\nScore: 7"
    think_s: float = 0.0  # before the answer
    delay_s: float = 0.0  # before each byte of the body
    finish_reason: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
            self.keys.append(handler.headers["Authorization"])
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        answer = self.answer(body["messages"][0]["content"]) if handler.path == "/v1/chat/completions" else (404, "")
        time.sleep(self.think_s)
        with self.lock:
            self.busy -= 1
        status, raw = answer if isinstance(answer, tuple) else (200, self.completion(answer))
        handler.send_response(status, "Because " + (self.keys[-1] or ""))
        for name, value in {**self.headers, "Content-Length": str(len(raw.encode()))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for byte in raw.encode() if self.delay_s else []:
                time.sleep(self.delay_s)
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
            if not self.delay_s:
                handler.wfile.write(raw.encode())
        except OSError:
            pass  # the client gave up, as it should

    def completion(self, text: str) -> str:
        message = {"role": "assistant", "content": text}
        return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}]})


@contextmanager
def serve() -> Iterator[Server]:
    """A server that runs until the block ends."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.reply(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def endpoint(server: Server, **changes: Any) -> ChatEndpoint:
    settings: dict[str, Any] = {"model": "judge", "timeout_s": 10.0, "retries": 2, "backoff_s": 0.01}
    return ChatEndpoint(server.url, **(settings | changes))


def in_turn(*answers: Answer) -> Callable[[str], Answer]:
    """These answers, one a question, and then the last one for ever."""
    rest, lock = list(answers), threading.Lock()

    def answer(question: str) -> Answer:
        with lock:
            return rest.pop(0) if len(rest) > 1 else rest[0]

    return answer


def quoted(question: str, what: str) -> str:
    """What stands between the marks `what` of a question."""
    found = re.search(rf"<{what}-([0-9a-f]{{32}})>\n(.*)\n</{what}-\1>", question, re.DOTALL)
    assert found, question
    return found[2]
