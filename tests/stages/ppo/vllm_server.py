"""A server that speaks what stage three asks of vLLM, over a real connection, on tiny models.

It loads the adapters it is told of with PEFT alone and samples from them, so that what was sent is
what answers.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

Seen = list[tuple[str, str]]


class TinyVllm(ThreadingHTTPServer):
    """The models by name, and what was asked of them."""

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.lock = base, Lock()
        self.eos = AutoTokenizer.from_pretrained(str(base)).eos_token_id
        self.models = {"base": AutoModelForCausalLM.from_pretrained(str(base)).eval()}
        self.seen: Seen = []
        self.off_by = 0.0  # added to every log-probability it tells

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: TinyVllm

    def do_GET(self) -> None:
        with self.server.lock:
            self._answer({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = json.loads(self.rfile.read(length))
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
                case "/v1/completions" if body["model"] in self.server.models:
                    self._answer({"choices": [self._complete(body)]})
                case _:
                    self.send_error(404, f"no model {body.get('model')}")

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"])
        model, ids, logprobs = self.server.models[body["model"]], list(body["prompt"]), []
        while len(logprobs) < body["max_tokens"]:
            with torch.no_grad():
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            logprob_V = torch.log_softmax(logits_V / body["temperature"], -1)
            token = int(torch.multinomial(logprob_V.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(logprob_V[token]) + self.server.off_by)
            if token in body["stop_token_ids"]:
                break
        output = ids[len(body["prompt"]) :]
        return {"token_ids": output, "logprobs": {"token_logprobs": logprobs}}

    def _answer(self, request: object) -> None:
        text = request if isinstance(request, str) else json.dumps(request)
        kind = "text/plain" if isinstance(request, str) else "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass
