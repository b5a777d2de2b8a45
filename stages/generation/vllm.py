"""Responses from a vLLM server, for rollouts on GPU machines (https://docs.vllm.ai).

    LoRA    the adapter is written to a folder that the server sees, and loaded there under a name
            of its own (`vllm serve BASE --enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)
    full    the weights go to the server over NCCL by TRL's client (VLLM_SERVER_DEV_MODE=1,
            --weight-transfer-config '{"backend": "nccl"}'); vLLM must be installed here too

The policy is sent before every rollout. The log-probabilities of the ratio are computed again by
the code path that training uses; the server's are only compared with them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from reward_models.model_files import first_line
from stages.distributed.network import Network
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled

_NAME = "policy"


class VllmSampler:
    """A vLLM server that samples from the current policy; `folder` is where adapters are written.

    Raises ValueError where the server cannot be reached or does not serve what is needed, and for a
    policy that vLLM cannot serve.
    """

    def __init__(
        self,
        url: str,
        model: PreTrainedModel,
        network: Network,
        accelerator: Accelerator,
        *,
        stops: Sequence[int],
        folder: Path,
        parallel: int,
        timeout_s: float,
    ) -> None:
        self.url, self.model, self.network, self.accelerator = url, model, network, accelerator
        self.stops, self.folder, self.parallel = stops, folder, parallel
        self.http = httpx.Client(base_url=url, timeout=timeout_s)
        served: list[str] = [one["id"] for one in self._request("GET", "/v1/models")["data"]]
        self.name = self.base = served[0]
        self.sent = _last_number(served)
        if isinstance(model, PeftModel):
            if not isinstance(model.peft_config["default"], LoraConfig):
                raise ValueError(
                    "rollouts.kind is vllm, which serves full fine-tuning and family lora; use "
                    "rollouts.kind: own for other families"
                )
        elif accelerator.is_main_process:
            self.weights = _weight_channel(url, accelerator.device)

    def sample(
        self,
        prompts: Sequence[list[int]],
        rows: Sequence[int],
        sampling: SamplingConfig,
        generator: torch.Generator,
    ) -> tuple[list[Sampled], list[list[float]]]:
        """Responses to the prompts at `rows`, and the log-probability of each of their tokens.

        Every rank must call. Each row has a seed of its own, so ranks do not change the draws.
        """
        self._send()
        seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        bodies = [self._completion(prompts[row], seeds[row], sampling) for row in rows]
        with ThreadPoolExecutor(self.parallel) as pool:
            answers = pool.map(lambda body: self._request("POST", "/v1/completions", body), bodies)
            parsed = [self._parse(answer["choices"][0]) for answer in answers]
        return [response for response, _ in parsed], [logprobs for _, logprobs in parsed]

    def _send(self) -> None:
        """Let the server sample from the policy as it is now."""
        self.sent += 1
        if isinstance(self.model, PeftModel):
            self._send_adapter(self.model)
        else:
            with self.network.gathered():
                if self.accelerator.is_main_process:
                    self.weights.update_model_params(self.model)
        self.accelerator.wait_for_everyone()

    def _send_adapter(self, model: PeftModel) -> None:
        weights = self.network.full(self.network.shards())
        name = f"{_NAME}-{self.sent}"
        if self.accelerator.is_main_process:
            folder = (self.folder / name).resolve()
            model.save_pretrained(str(folder), state_dict=weights)
            body = {"lora_name": name, "lora_path": str(folder)}
            self._request("POST", "/v1/load_lora_adapter", body, hint=_LORA_HINT)
            if self.name != self.base:
                self._request("POST", "/v1/unload_lora_adapter", {"lora_name": self.name})
        self.name = name

    def _completion(self, prompt: list[int], seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        """Plain sampling at a temperature: filters that a model's own defaults set are off."""
        return {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "stop_token_ids": list(self.stops),
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _parse(self, choice: dict[str, Any]) -> tuple[Sampled, list[float]]:
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if not ids or not logprobs or len(logprobs["token_logprobs"]) != len(ids):
            raise ValueError(
                f"{self.url}: a response without token_ids and their logprobs; expected a "
                "vLLM server that knows return_token_ids (0.10.2 or newer)"
            )
        return Sampled(ids, ended=ids[-1] in self.stops), logprobs["token_logprobs"]

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, hint: str = ""
    ) -> Any:
        with _one_line(f"{self.url}{path}", hint):
            response = self.http.request(method, path, json=body)
            response.raise_for_status()
            # Loading an adapter is answered with a sentence.
            is_json = "json" in response.headers.get("content-type", "")
            return response.json() if is_json else response.text


def _last_number(served: Sequence[str]) -> int:
    """The number of the newest adapter on the server, left there by an interrupted run."""
    numbers = [name.removeprefix(f"{_NAME}-") for name in served if name.startswith(f"{_NAME}-")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


_LORA_HINT = "; is it run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1?"


def _weight_channel(url: str, device: torch.device) -> Any:
    """TRL's client of a vLLM server, with a group for weights; ValueError where there is no way."""
    from trl.generation.vllm_client import VLLMClient

    try:
        client = VLLMClient(base_url=url)
        client.init_communicator(device)
    except (ImportError, NotImplementedError, RuntimeError, ConnectionError) as error:
        raise ValueError(f"rollouts.url {url}: {first_line(error)}") from None
    return client


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
