"""A model behind an OpenAI-compatible address: asked in parallel, remembered, counted, priced.

Every answer is kept in a SQLite file under the hash of the whole request, so that a run that is
cut off, or done again, pays for nothing twice. A request that fails for good is a failure that the
caller counts, never an answer.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stages.progress import Report, Step, silent

Message = dict[str, str]  # {"role": ..., "content": ...}
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served. Prices are in any currency per million tokens; None: unknown."""

    url: str  # up to and without /chat/completions
    model: str
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if any
    price_prompt: float | None = None
    price_response: float | None = None
    parallel: int = 8
    attempts: int = 4
    timeout_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said (None: the request failed, `error` says why) and what it cost."""

    text: str | None
    prompt_tokens: int = 0
    response_tokens: int = 0
    remembered: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Bill:
    """Requests, failures, and tokens that were paid for now (remembered answers are free)."""

    requests: int
    failed: int
    remembered: int
    prompt_tokens: int
    response_tokens: int
    cost: float | None

    def __str__(self) -> str:
        price = "price unknown" if self.cost is None else f"cost {self.cost:.4f}"
        return (
            f"{self.requests} requests, {self.failed} failed, {self.remembered} remembered; "
            f"{self.prompt_tokens} + {self.response_tokens} tokens, {price}"
        )


def ask(
    endpoint: Endpoint,
    conversations: Sequence[Sequence[Message]],
    *,
    memory: Path,
    max_tokens: int = 256,
    report: Report = silent,
) -> list[Reply]:
    """One reply to each conversation, in order, at temperature 0; one that failed has no text.

    `memory` is the file of remembered answers.
    """
    bodies = [
        {
            "model": endpoint.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        for messages in conversations
    ]
    lock, done = threading.Lock(), 0
    with _Memory(memory, endpoint.url) as remembered, _client(endpoint) as client:

        def answer(body: dict[str, Any]) -> Reply:
            nonlocal done
            reply = remembered.find(body)
            if reply is None:
                reply = _request(client, endpoint, body)
                remembered.keep(body, reply)
            with lock:
                done += 1
                report(Step(done, len(bodies)))
            return reply

        with ThreadPoolExecutor(endpoint.parallel) as pool:
            return list(pool.map(answer, bodies))


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise ValueError where nobody answers, or the key is refused: before anything is generated.

    Asks for the list of models, which costs nothing; a server that has no such list is believed.
    """
    url = f"{endpoint.url.rstrip('/')}/models"
    try:
        with _client(endpoint) as client:
            status = client.get(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise ValueError(f"{endpoint.url}: no answer ({problem})") from None
    if status in (401, 403):
        raise ValueError(f"{endpoint.url} refuses the key in ${endpoint.key_variable} ({status})")


def bill(endpoint: Endpoint, replies: Sequence[Reply]) -> Bill:
    """What these replies took."""
    paid = [reply for reply in replies if not reply.remembered]
    prompt = sum(reply.prompt_tokens for reply in paid)
    response = sum(reply.response_tokens for reply in paid)
    cost = None
    if endpoint.price_prompt is not None and endpoint.price_response is not None:
        cost = (prompt * endpoint.price_prompt + response * endpoint.price_response) / 1e6
    failed = sum(reply.text is None for reply in replies)
    return Bill(len(replies), failed, len(replies) - len(paid), prompt, response, cost)


def _client(endpoint: Endpoint) -> httpx.Client:
    key = os.environ.get(endpoint.key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(headers=headers, timeout=endpoint.timeout_seconds)


def _request(client: httpx.Client, endpoint: Endpoint, body: dict[str, Any]) -> Reply:
    url, error = f"{endpoint.url.rstrip('/')}/chat/completions", ""
    for attempt in range(endpoint.attempts):
        try:
            response = client.post(url, json=body)
        except httpx.HTTPError as problem:
            error = f"{type(problem).__name__}: {problem}"
        else:
            if response.status_code == 200:
                return _read(response)
            error = f"status {response.status_code}"
            if response.status_code not in _PASSING:
                break
        if attempt + 1 < endpoint.attempts:
            time.sleep(0.5 * 2**attempt)
    return Reply(None, error=error)


def _read(response: httpx.Response) -> Reply:
    try:
        told = response.json()
        text = told["choices"][0]["message"]["content"]
        usage = told.get("usage") or {}
        prompt = int(usage.get("prompt_tokens") or 0)
        response_tokens = int(usage.get("completion_tokens") or 0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return Reply(None, error="the answer is not a chat completion")
    if not isinstance(text, str):
        return Reply(None, error="the answer holds no text")
    return Reply(text, prompt, response_tokens)


def default_memory() -> Path:
    """Where answers are remembered if nobody says: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "instruct-rlhf" / "answers.db"


class _Memory:
    """Answers by request; several threads share it."""

    def __init__(self, path: Path, url: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._url, self._lock = url, threading.Lock()
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._file.execute(
            "create table if not exists answers (request text primary key, reply text not null)"
        )

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, body: dict[str, Any]) -> Reply | None:
        """The reply that was kept for this request."""
        with self._lock:
            row = self._file.execute(
                "select reply from answers where request = ?", (self._name(body),)
            ).fetchone()
        return None if row is None else Reply(**json.loads(row[0]), remembered=True)

    def keep(self, body: dict[str, Any], reply: Reply) -> None:
        """Remember an answer; failures are asked again next time."""
        if reply.text is None:
            return
        counts = {
            "prompt_tokens": reply.prompt_tokens,
            "response_tokens": reply.response_tokens,
        }
        told = json.dumps({"text": reply.text, **counts})
        with self._lock:
            self._file.execute(
                "insert or replace into answers values (?, ?)", (self._name(body), told)
            )

    def _name(self, body: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
