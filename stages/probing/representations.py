"""Pooled hidden states of a frozen encoder or decoder for texts, stored on disk.

Layer 0 is the embeddings, layer n the output of the n-th block; a decoder's last layer is taken
after its final norm. A text is pooled over its own tokens:

    last   the last token, which in a decoder attends to the whole text
    cls    the first token, which in an encoder is [CLS]
    mean   the mean over tokens

Texts are processed in chunks of one file each, so that an interrupted extraction resumes.

Dimension key:  N texts,  B texts in a batch,  L tokens,  S layers,  D hidden size.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

from reward_models.atomic_files import written_aside
from reward_models.backbone import weights_hash
from reward_models.context_limit import ContextLimit, max_positions
from reward_models.model_files import ADAPTER_CONFIG, LOAD_ERRORS, check_source, first_line
from stages.data.padding import pad_right
from stages.models import device, load_policy
from stages.progress import Report, Step, silent

Pooling = Literal["last", "cls", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ABOUT = "about.json"
CHUNK = 512  # texts to a file


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A frozen model with its tokenizer; `layers` counts the embeddings as one."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: int
    is_decoder: bool

    def check_pooling(self, pooling: Pooling) -> None:
        """Raise ValueError where the pooled token does not attend to the text."""
        if pooling == "cls" and self.is_decoder:
            raise ValueError(
                f"pooling is 'cls', but {self.name} is a decoder: its first token attends "
                "to nothing; expected last or mean"
            )


def load_frozen(source: str) -> FrozenModel:
    """Return an encoder or decoder of a folder or hub name, float32; ValueError if there is none.

    An adapter's folder is loaded on its base.
    """
    check_source(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if (Path(source) / ADAPTER_CONFIG).is_file():
            model = load_policy(source)
        else:
            config = AutoConfig.from_pretrained(source)
            model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32)
    except LOAD_ERRORS as error:
        raise ValueError(f"{source}: no model there ({first_line(error)})") from None
    model.requires_grad_(False)
    model.train(False)
    model.to(device())  # type: ignore[arg-type]
    kind = str(model.config.model_type)
    layers = int(model.config.num_hidden_layers) + 1
    decoder = kind in CAUSAL and (kind not in MASKED or bool(model.config.is_decoder))
    return FrozenModel(source, model, tokenizer, layers, decoder)


def pooled(hidden_BLD: Tensor, mask_BL: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector a text, (B, D), from right-padded hidden states; mask true = counts."""
    match pooling:
        case "cls":
            return hidden_BLD[:, 0]
        case "last":
            rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
            return hidden_BLD[rows_B, mask_BL.sum(1) - 1]
        case "mean":
            weight_BL1 = mask_BL[..., None].to(hidden_BLD.dtype)
            return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)


@dataclass(frozen=True, slots=True)
class Representations:
    """Pooled hidden states in a folder of chunks."""

    folder: Path
    chunks: int

    def read(self, pooling: Pooling, layer: int) -> NDArray[np.float32]:
        """Return the vectors (N, D) of one pooling at one layer, in the order of the texts."""
        parts = []
        for chunk in range(self.chunks):
            with safe_open(str(_chunk_path(self.folder, chunk)), framework="np") as stored:
                parts.append(stored.get_tensor(f"{pooling}.{layer}"))
        return np.concatenate(parts)


def represent(
    frozen: FrozenModel,
    texts: Sequence[str],
    folder: Path,
    *,
    poolings: Sequence[Pooling],
    layers: Sequence[int],
    max_tokens: int,
    batch_size: int,
    report: Report = silent,
) -> Representations:
    """Compute the representations of all texts; chunks of an earlier call are not computed again.

    Texts are cut to `max_tokens` and the model's positions. Chunks of another model, other texts or
    other settings are removed.
    """
    for pooling in poolings:
        frozen.check_pooling(pooling)
    about = {
        "weights_sha256": weights_hash(frozen.model),
        "texts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "model": frozen.name,
        "poolings": list(poolings),
        "layers": list(layers),
        "max_tokens": max_tokens,
    }
    _prepare(folder, about)
    chunks = -(-len(texts) // CHUNK)
    for chunk in range(chunks):
        path = _chunk_path(folder, chunk)
        chunk_texts = texts[chunk * CHUNK : (chunk + 1) * CHUNK]
        if not path.is_file():
            stored = _compute_chunk(frozen, chunk_texts, poolings, layers, max_tokens, batch_size)
            with written_aside(path) as aside:
                save_file(stored, str(aside))
        report(Step(chunk * CHUNK + len(chunk_texts), len(texts)))
    return Representations(folder, chunks)


def _prepare(folder: Path, about: dict[str, object]) -> None:
    path = folder / ABOUT
    if path.is_file() and path.read_text(encoding="utf-8") == json.dumps(about, indent=2) + "\n":
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _chunk_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:05}.safetensors"


def _compute_chunk(
    frozen: FrozenModel,
    texts: Sequence[str],
    poolings: Sequence[Pooling],
    layers: Sequence[int],
    max_tokens: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Return `pooling.layer` -> (N, D), computed in batches of texts of similar length."""
    most = ContextLimit(frozen.name, max_positions(frozen.model.config)).at_most(max_tokens)
    ids = [_token_ids(frozen.tokenizer, text, most) for text in texts]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    width = int(frozen.model.config.hidden_size)
    names = [(pooling, layer) for pooling in poolings for layer in layers]
    vectors = {name: torch.zeros(len(texts), width) for name in names}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids_BL, mask_BL = pad_right([ids[row] for row in rows], 0)
        ids_BL, mask_BL = ids_BL.to(frozen.model.device), mask_BL.to(frozen.model.device)
        hidden_SBLD = _hidden_states(frozen.model, ids_BL, mask_BL)
        for pooling, layer in names:
            vectors_BD = pooled(hidden_SBLD[layer], mask_BL, pooling)
            vectors[pooling, layer][rows] = vectors_BD.float().cpu()
    return {f"{pooling}.{layer}": vectors[pooling, layer] for pooling, layer in names}


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> list[int]:
    ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
    return [int(token) for token in cast(list[int], ids)]


def _hidden_states(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
    """Return every layer's hidden states, of a language model as of its bare transformer."""
    with torch.inference_mode():
        output = model(input_ids=ids_BL, attention_mask=mask_BL.long(), output_hidden_states=True)
    return cast(tuple[Tensor, ...], output.hidden_states)
