"""A server that speaks what stage three asks of vLLM, over a real connection, on tiny models.

It loads adapters with PEFT and weights with transformers, and samples from them, so that what was
sent is what answers. Like vLLM it also stops at the ids that the served model itself names.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

Seen = list[tuple[str, str]]


class TinyVllm(ThreadingHTTPServer):
    """The models by name, and what was asked of them."""

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.lock = base, Lock()
        self.models = {"base": AutoModelForCausalLM.from_pretrained(str(base)).eval()}
        self.seen: Seen = []
        self.off_by = 0.0  # added to every log-probability
        self.tempered = True  # log-probabilities are those that tokens are sampled with
        self.own_stops: list[int] = []  # of its model's generation settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: TinyVllm

    def do_GET(self) -> None:
        with self.server.lock:
            self._answer({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length) or "{}")
        with self.server.lock:
            self.server.seen.append((self.path, body.get("lora_name", body.get("model", ""))))
            match self.path:
                case "/v1/load_lora_adapter" if body["lora_name"] in self.server.models:
                    self.send_error(400, f"'{body['lora_name']}' has already been loaded")
                case "/v1/load_lora_adapter":
                    base = AutoModelForCausalLM.from_pretrained(str(self.server.base))
                    model = PeftModel.from_pretrained(base, body["lora_path"]).eval()
                    self.server.models[body["lora_name"]] = model
                    self._answer("Success: LoRA adapter added successfully.")
                case "/v1/unload_lora_adapter":
                    del self.server.models[body["lora_name"]]
                    self._answer("Success: LoRA adapter removed successfully.")
                case "/collective_rpc" if body["method"] == "reload_weights":
                    path = body["kwargs"]["weights_path"]
                    self.server.models["base"] = AutoModelForCausalLM.from_pretrained(path).eval()
                    self._answer({"results": [None]})
                case "/reset_prefix_cache":
                    self._answer({"success": True})
                case "/v1/completions" if body["model"] in self.server.models:
                    self._answer({"choices": [self._complete(body)]})
                case _:
                    self.send_error(404, f"no model {body.get('model')}")

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        model, ids, logprobs = self.server.models[body["model"]], list(body["prompt"]), []
        stops = [*body.get("stop_token_ids", ()), *self.server.own_stops * (not body["ignore_eos"])]
        reason, temperature = "length", body.get("temperature", 1.0)
        while len(logprobs) < body["max_tokens"]:
            with torch.no_grad():
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            sampled_V = torch.full_like(logits_V, -torch.inf)
            allowed = body.get("allowed_token_ids", slice(None))
            sampled_V[allowed] = torch.log_softmax(logits_V[allowed] / temperature, -1)
            reported_V = sampled_V if self.server.tempered else torch.log_softmax(logits_V, -1)
            token = int(torch.multinomial(sampled_V.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(reported_V[token]) + self.server.off_by)
            if token in stops:
                reason = "stop"
                break
        output = ids[len(body["prompt"]) :]
        logprobs = {"token_logprobs": logprobs}
        return {"token_ids": output, "logprobs": logprobs, "finish_reason": reason}

    def _answer(self, request: object) -> None:
        text = request if isinstance(request, str) else json.dumps(request)
        kind = "text/plain" if isinstance(request, str) else "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass
