"""A client of a vLLM server (https://docs.vllm.ai): the requests that rollouts need.

Whatever the server refuses, and no answer at all, is a ValueError of one line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx

_LORA_HINT = "; is it run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1?"
_DEV_HINT = "; is it run with VLLM_SERVER_DEV_MODE=1?"


class VllmServer:
    """The server at `url`, asked by up to `parallel` threads at once."""

    def __init__(self, url: str, *, timeout_s: float, parallel: int) -> None:
        self.url, self.parallel = url, parallel
        # The server closes idle connections after 5 s: none may be used just then.
        limits = httpx.Limits(max_connections=parallel, keepalive_expiry=1.0)
        self.http = httpx.Client(base_url=url, timeout=timeout_s, limits=limits)

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def models(self) -> list[str]:
        """The names of what it serves: the base first, then adapters."""
        return [model["id"] for model in self._request("GET", "/v1/models")["data"]]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The only choice of a completion."""
        choice: dict[str, Any] = self._request("POST", "/v1/completions", body)["choices"][0]
        return choice

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load the adapter in a folder that the server sees."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self._request("POST", "/v1/load_lora_adapter", body, hint=_LORA_HINT)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; one that is not there, as after a restart, needs nothing."""
        if name in self.models():
            self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name}, hint=_LORA_HINT)

    def reload_weights(self, folder: Path) -> None:
        """Replace the weights by those in a folder that the server sees."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._request("POST", "/collective_rpc", body, hint=_DEV_HINT)

    def forget_prefixes(self) -> None:
        """Drop the cached keys and values of prompts, which earlier weights computed."""
        if not self._request("POST", "/reset_prefix_cache", hint=_DEV_HINT)["success"]:
            raise ValueError(
                f"{self.url}: the prefix cache is in use while weights are replaced; expected a "
                "server that serves this run alone"
            )

    def require_sleep(self) -> None:
        """Raise ValueError where sleeping would free no memory; on a CPU it never does."""
        path = "/server_info?config_format=json"
        config = self._request("GET", path, hint=_DEV_HINT)["vllm_config"]
        on_cpu = config["device_config"]["device"] == "cpu"
        if not on_cpu and not config["model_config"]["enable_sleep_mode"]:
            raise ValueError(
                f"{self.url}: rollouts.sleep is true, but the server is run without "
                "--enable-sleep-mode"
            )

    def sleep(self) -> None:
        """Move the weights to main memory and drop the cache, once running requests have ended."""
        self._request("POST", "/sleep?level=1&mode=wait", hint=_DEV_HINT)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Take device memory again for one of the two; with both, it answers again."""
        self._request("POST", f"/wake_up?tags={part}", hint=_DEV_HINT)

    def require_tempered_logprobs(self, model: str, token: int) -> None:
        """Raise ValueError unless log-probabilities are those that tokens are sampled with.

        Where one token alone is allowed, its probability is 1 then; before the temperature and all
        other processing it is the model's.
        """
        body = {"model": model, "prompt": [token], "max_tokens": 1, "logprobs": 0}
        choice = self.complete(body | {"allowed_token_ids": [token], "ignore_eos": True})
        if choice["logprobs"]["token_logprobs"] != [0.0]:
            raise ValueError(
                f"{self.url}: log-probabilities are those before the temperature; expected a "
                "server that is run with --logprobs-mode processed_logprobs, or "
                "sampling.temperature 1"
            )

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, hint: str = ""
    ) -> Any:
        with _one_line(f"{self.url}{path}", hint):
            response = self.http.request(method, path, json=body)
            response.raise_for_status()
            # Loading an adapter is answered with a sentence.
            is_json = "json" in response.headers.get("content-type", "")
            return response.json() if is_json else response.text


@contextmanager
def _one_line(url: str, hint: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        lines = error.response.text.strip().splitlines() or [error.response.reason_phrase]
        status = error.response.status_code
        raise ValueError(f"{url}: answered {status} ({lines[0][:160]}){hint}") from None
    except httpx.HTTPError as error:
        raise ValueError(f"{url}: no answer ({error})") from None
