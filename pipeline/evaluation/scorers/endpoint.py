"""A model behind an OpenAI-compatible address: parallel requests, cached, counted and priced.

Every reply is cached in a SQLite file under the hash of the whole request, so that a run that is
interrupted, or repeated, pays for nothing twice. A request that fails for good is a failure that
the caller counts, never a reply.
"""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.evaluation import EndpointConfig
from pipeline.config.messages import require
from stages.progress import Report, Step, silent

if TYPE_CHECKING:
    from openai import OpenAI

Message = dict[str, str]  # {"role": ..., "content": ...}


@dataclass(frozen=True, slots=True)
class Reply:
    """The text of a reply (None: the request failed, `error` says why) and its cost."""

    text: str | None
    prompt_tokens: int = 0
    response_tokens: int = 0
    cached: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Bill:
    """Requests, failures, and tokens that were paid for now (cached replies are free)."""

    requests: int
    failed: int
    cached: int
    prompt_tokens: int
    response_tokens: int
    cost: float | None

    def __str__(self) -> str:
        price = "price unknown" if self.cost is None else f"cost {self.cost:.4f}"
        return (
            f"{self.requests} requests, {self.failed} failed, {self.cached} cached; "
            f"{self.prompt_tokens} + {self.response_tokens} tokens, {price}"
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served model. Its key is read from the environment and never kept."""

    config: EndpointConfig
    retries: int = 3
    timeout_s: float = 60.0

    @property
    def sha256(self) -> str:
        """The hash of address and model: the weights are elsewhere."""
        return hashlib.sha256(f"{self.config.url} {self.config.model}".encode()).hexdigest()

    def check(self) -> None:
        """Raise ValueError where the server does not answer or refuses the key.

        Asks for the list of models, which costs nothing; a server without such a list passes.
        """
        with self._client() as client:
            import openai

            try:
                client.models.list()
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise ValueError(
                    f"{self.config.url} refuses the key in ${self.config.key_variable} "
                    f"({error.status_code})"
                ) from None
            except openai.APIConnectionError as error:
                raise ValueError(
                    f"{self.config.url}: no answer ({error.__cause__ or error})"
                ) from None
            except openai.APIError:
                return

    def replies(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_tokens: int = 256,
        report: Report = silent,
    ) -> list[Reply]:
        """Return a reply to each conversation at temperature 0; a failed one has no text."""
        with self._client() as client, closing(_Cache(self.config)) as cache:

            def reply(messages: Sequence[Message]) -> Reply:
                request = {
                    "model": self.config.model,
                    "messages": list(messages),
                    "temperature": 0,
                    "max_tokens": max_tokens,
                }
                cached = cache.get(request)
                if cached is None:
                    cached = _request(client, request)
                    cache.put(request, cached)
                return cached

            replies = []
            with ThreadPoolExecutor(self.config.parallel) as pool:
                for one in pool.map(reply, conversations):
                    replies.append(one)
                    report(Step(len(replies), len(conversations)))
            return replies

    def bill(self, replies: Sequence[Reply]) -> Bill:
        """Return the cost of these replies."""
        paid = [reply for reply in replies if not reply.cached]
        prompt = sum(reply.prompt_tokens for reply in paid)
        response = sum(reply.response_tokens for reply in paid)
        cost, config = None, self.config
        if config.price_prompt is not None and config.price_response is not None:
            cost = (prompt * config.price_prompt + response * config.price_response) / 1e6
        failed = sum(reply.text is None for reply in replies)
        return Bill(len(replies), failed, len(replies) - len(paid), prompt, response, cost)

    def _client(self) -> "OpenAI":
        require("endpoints", "openai")
        from openai import OpenAI

        key = os.environ.get(self.config.key_variable) or "none"  # local servers need none
        return OpenAI(
            base_url=self.config.url,
            api_key=key,
            max_retries=self.retries,
            timeout=self.timeout_s,
        )


def _request(client: "OpenAI", request: dict[str, Any]) -> Reply:
    import openai

    try:
        completion = client.chat.completions.create(**request)
        text = completion.choices[0].message.content
    except openai.APIStatusError as error:
        return Reply(None, error=f"status {error.status_code}")
    except openai.OpenAIError as error:
        return Reply(None, error=f"{type(error).__name__}: {error}")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Reply(None, error="the reply is not a chat completion")
    if not isinstance(text, str):
        return Reply(None, error="the reply holds no text")
    usage = completion.usage
    if usage is None:
        return Reply(text)
    return Reply(text, usage.prompt_tokens or 0, usage.completion_tokens or 0)


class _Cache:
    """Replies by request; several threads share it."""

    def __init__(self, config: EndpointConfig) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path = Path(config.cache or f"{home}/instruct-rlhf/answers.db").expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._url, self._lock = config.url, threading.Lock()
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._file.execute(
            "create table if not exists answers (request text primary key, reply text not null)"
        )

    def close(self) -> None:
        self._file.close()

    def get(self, request: dict[str, Any]) -> Reply | None:
        query = "select reply from answers where request = ?"
        with self._lock:
            row = self._file.execute(query, (self._key(request),)).fetchone()
        return None if row is None else Reply(**{**json.loads(row[0]), "cached": True})

    def put(self, request: dict[str, Any], reply: Reply) -> None:
        """Cache a reply; a failed request is sent again next time."""
        if reply.text is None:
            return
        values = asdict(reply)
        row = {name: values[name] for name in ("text", "prompt_tokens", "response_tokens")}
        with self._lock:
            self._file.execute(
                "insert or replace into answers values (?, ?)",
                (self._key(request), json.dumps(row)),
            )

    def _key(self, request: dict[str, Any]) -> str:
        text = json.dumps([self._url, request], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
