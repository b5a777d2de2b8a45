"""Responses from a vLLM server, for rollouts on GPU machines.

    LoRA    the adapter is written to a folder that the server sees, and loaded there under a name
            that no other run has (`vllm serve BASE --enable-lora`,
            VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)
    full    the weights are written to such a folder, and vLLM reloads its own from there
            (VLLM_SERVER_DEV_MODE=1); or they go over NCCL, by TRL's client
            (--weight-transfer-config '{"backend": "nccl"}'; vLLM must be installed here too)

The policy is sent before every rollout. What was sent before is unloaded and deleted then, and the
last when the run ends, so neither the server nor the disk fills. The log-probabilities of the
ratio are computed again by the code path that training uses; the server's are compared with them
and may weight the loss (`losses.importance_weights`).
"""

import hashlib
import logging
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from reward_models.model_files import first_line
from stages.distributed.network import Network
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled
from stages.generation.vllm_server import VllmServer

log = logging.getLogger(__name__)


class VllmSampler:
    """A vLLM server that samples from the current policy; `folder` is where it is written to.

    A token of `stops` ends a response, as in own rollouts, and no other does. With `sleeps` the
    server has device memory only while it samples. Raises ValueError where the server cannot be
    reached or does not serve what is needed, and for a policy that vLLM cannot serve.
    """

    def __init__(
        self,
        server: VllmServer,
        model: PreTrainedModel,
        network: Network,
        accelerator: Accelerator,
        *,
        stops: Sequence[int],
        folder: Path,
        transfer: Literal["folder", "nccl"] = "folder",
        sleeps: bool = False,
    ) -> None:
        self.server, self.model, self.network = server, model, network
        self.accelerator, self.sleeps = accelerator, sleeps
        self.stops, self.folder, self.sent = list(stops), folder.resolve(), 0
        self.weights = None  # a channel for them; None: a folder
        served = server.models()
        self.name = self.base = served[0]
        self.session = _session(self.folder)
        if isinstance(model, PeftModel):
            if not isinstance(model.peft_config["default"], LoraConfig):
                raise ValueError(
                    "rollouts.kind is vllm, which serves full fine-tuning and family lora; use "
                    "rollouts.kind: own for other families"
                )
        elif transfer == "nccl" and accelerator.is_main_process:
            self.weights = _weight_channel(server.url, accelerator.device)
        if accelerator.is_main_process:
            self._remove_own(served)
            if sleeps:
                server.require_sleep()
                server.sleep()

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
        if self.sent == 1 and sampling.temperature != 1.0:
            self.server.require_tempered_logprobs(self.name, prompts[0][0])
        seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        bodies = [self._completion(prompts[row], seeds[row], sampling) for row in rows]
        with ThreadPoolExecutor(self.server.parallel) as pool:
            parsed = [self._parse(choice) for choice in pool.map(self.server.complete, bodies)]
        if self.sleeps:
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.server.sleep()
        return [response for response, _ in parsed], [logprobs for _, logprobs in parsed]

    def close(self) -> None:
        """Unload and delete what was sent; the server may be gone by now."""
        if self.accelerator.is_main_process:
            try:
                self._remove_own(self.server.models())
            except ValueError as error:
                log.warning("%s; adapters of this run may still be loaded there", error)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.server.close()

    def _send(self) -> None:
        """Let the server sample from the policy as it is now."""
        self.sent += 1
        if self.sleeps:
            clear_device_cache()
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.server.wake("weights")
        if isinstance(self.model, PeftModel):
            self._send_adapter(self.model)
        else:
            with self.network.gathered():
                if self.accelerator.is_main_process:
                    self._send_weights()
        if self.sleeps and self.accelerator.is_main_process:
            self.server.wake("kv_cache")
        self.accelerator.wait_for_everyone()

    def _send_adapter(self, model: PeftModel) -> None:
        weights = self.network.full(self.network.shards())
        before, self.name = self.name, f"{self.session}-{self.sent}"
        if self.accelerator.is_main_process:
            folder = self.folder / self.name
            model.save_pretrained(str(folder), state_dict=weights)
            self.server.load_adapter(self.name, folder)
            self._unload(before)

    def _send_weights(self) -> None:
        if self.weights is not None:
            self.weights.update_model_params(self.model)
        else:
            folder = self.folder / f"{self.session}-{self.sent}"
            self.model.save_pretrained(str(folder), state_dict=_untied(self.model))
            self.server.reload_weights(folder)
            shutil.rmtree(folder)
        self.server.forget_prefixes()

    def _remove_own(self, served: Sequence[str]) -> None:
        """Unload and delete all of this run, also what an interrupted process has left."""
        for name in served:
            if name.startswith(_prefix(self.folder)):
                self._unload(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unload(self, name: str) -> None:
        if name != self.base:
            self.server.unload_adapter(name)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _completion(self, prompt: list[int], seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        """Plain sampling at a temperature: filters and stops that a model's own defaults set are
        off.
        """
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
            "ignore_eos": True,  # of the served model's own settings; `stops` has the policy's
            "stop_token_ids": self.stops,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _parse(self, choice: dict[str, Any]) -> tuple[Sampled, list[float]]:
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if not ids or not logprobs or len(logprobs["token_logprobs"]) != len(ids):
            raise ValueError(
                f"{self.server.url}: a response without token_ids and their logprobs; expected a "
                "vLLM server that knows return_token_ids (0.10.2 or newer)"
            )
        ended, reason = ids[-1] in self.stops, choice["finish_reason"]
        if not ended and reason != "length":
            raise ValueError(
                f"{self.server.url}: a response finished by '{reason}' after token {ids[-1]}; "
                f"expected max_tokens or one of {self.stops} to end it"
            )
        return Sampled(ids, ended=ended), logprobs["token_logprobs"]


def _prefix(folder: Path) -> str:
    """The beginning of all names of a run, by its folder, which is the same when it is resumed."""
    return f"rlhf-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}-"


def _session(folder: Path) -> str:
    """The beginning of this process's names, the same on every rank.

    No process repeats a name, because a server may hold keys and values under it.
    """
    shared = [_prefix(folder) + uuid.uuid4().hex[:6]]
    broadcast_object_list(shared)
    return shared[0]


def _untied(model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights; one that is tied to another is a copy, so that it is written too.

    On a CPU vLLM packs the output layer's weights, and packs them anew only where it reads them.
    """
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        weights[name] = parameter.data.clone() if id(parameter) in seen else parameter.data
        seen.add(id(parameter))
    return weights


def _weight_channel(url: str, device: torch.device) -> Any:
    """TRL's client of a vLLM server, with a group for weights; ValueError where there is no way."""
    from trl.generation.vllm_client import VLLMClient

    try:
        client = VLLMClient(base_url=url)
        client.init_communicator(device)
    except (ImportError, NotImplementedError, RuntimeError, ConnectionError) as error:
        raise ValueError(f"rollouts.url {url}: {first_line(error)}") from None
    return client
