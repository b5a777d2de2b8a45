"""A real HTTP server in this process that speaks as services of chat models do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON; a test says what, in `on_post` and `on_get`."""

    def do_GET(self) -> None:
        self.on_get()

    def do_POST(self) -> None:
        self.on_post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def on_get(self) -> None:
        """Answer a request without a body."""
        self.send(404, {})

    def on_post(self, body: dict[str, Any]) -> None:
        """Answer a request with a body."""
        raise NotImplementedError

    def send(self, status: int, value: dict[str, Any]) -> None:
        """Answer with a status and a JSON object."""
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def chat(text: str) -> dict[str, Any]:
    """A completion of so many tokens for which a price is asked."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


@contextmanager
def serving(handler: type[JsonHandler]) -> Iterator[str]:
    """Serve for a while, at the address that is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
