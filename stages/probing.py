"""Probing: how well a simple classifier predicts a label from a frozen model's hidden states.

Layer 0 is the embeddings, layer n the output of the n-th block; a decoder's last layer is taken
after its final norm. A text is pooled over its own tokens:

    last   the last token, which in a decoder attends to the whole text
    cls    the first token, which in an encoder is [CLS]
    mean   the mean over tokens

Texts are processed in chunks of one file each, so that an interrupted extraction resumes.

A probe is a linear classifier (multinomial logistic regression) or an MLP with one hidden layer,
fitted on standardised vectors of one layer. A strong probe may learn a task that the representation
does not hold, so each is set against a control task (Hewitt & Liang 2019): every text gets a random
label, drawn once from the task's own label frequencies. There is nothing in such a label but the
text's identity, so a probe that predicts it has memorised. As in their paper the control is scored
on inputs whose random label was seen in fitting; for whole texts those are the training texts.

    selectivity = accuracy on the task (test texts) - accuracy on the control (training texts)

Dimension key:  N texts,  B texts in a batch,  L tokens,  S layers,  D hidden size.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
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

from reward_models.atomic_files import empty_unless_same, written_aside
from reward_models.backbone import weights_hash
from reward_models.context_limit import ContextLimit, max_positions
from reward_models.model_files import ADAPTER_CONFIG, LOAD_ERRORS, check_source, first_line
from stages.data.padding import pad_right
from stages.models import device, load_policy, to_device
from stages.progress import Report, Step, silent

Pooling = Literal["last", "cls", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ABOUT = "about.json"
CHUNK = 512  # texts to a file

Kind = Literal["linear", "mlp"]
Vectors = NDArray[np.float32]
Labels = NDArray[Any]  # numbers or strings

MLP_WIDTH = 128  # units of the hidden layer
MLP_EPOCHS = 100
MLP_BATCH = 200  # texts


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
    to_device(model, device())
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
    empty_unless_same(folder, ABOUT, json.dumps(about, indent=2) + "\n")
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
    encoded = frozen.tokenizer(list(texts), truncation=True, max_length=most)
    ids = cast(list[list[int]], encoded["input_ids"])
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    width = int(frozen.model.config.hidden_size)
    names = [(pooling, layer) for pooling in poolings for layer in layers]
    vectors = {name: torch.zeros(len(texts), width) for name in names}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids_BL, mask_BL = pad_right([ids[row] for row in rows], 0)
        ids_BL, mask_BL = ids_BL.to(frozen.model.device), mask_BL.to(frozen.model.device)
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
        with torch.inference_mode():
            hidden_SBLD = frozen.model(**inputs, output_hidden_states=True).hidden_states
        for pooling, layer in names:
            vectors_BD = pooled(hidden_SBLD[layer], mask_BL, pooling)
            vectors[pooling, layer][rows] = vectors_BD.float().cpu()
    return {f"{pooling}.{layer}": vectors[pooling, layer] for pooling, layer in names}


@dataclass(frozen=True, slots=True)
class Probed:
    """The accuracy of a probe: a flag a test text, and the share of training texts."""

    correct_N: NDArray[np.bool_]
    training_accuracy: float

    @property
    def accuracy(self) -> float:
        """The share of the test texts."""
        return float(self.correct_N.mean())


def fit_probe(
    train_ND: Vectors,
    label_N: Labels,
    test_ND: Vectors,
    test_label_N: Labels,
    *,
    kind: Kind,
    strength: float,
    seed: int,
) -> Probed:
    """Fit on the training vectors, score on the test vectors.

    The loss summed over training texts is penalised by strength / 2 * |weights|^2.
    """
    scaler = StandardScaler().fit(train_ND)
    probe = _new_probe(kind, strength, len(train_ND), seed)
    scaled_ND = scaler.transform(train_ND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration limit is a choice
        probe.fit(scaled_ND, label_N)
    correct_N = probe.predict(scaler.transform(test_ND)) == test_label_N
    training = float((probe.predict(scaled_ND) == label_N).mean())
    return Probed(np.asarray(correct_N, dtype=bool), training)


def control_accuracy(
    train_ND: Vectors, label_N: Labels, *, kind: Kind, strength: float, seed: int
) -> float:
    """Return the share of training texts whose random label the same probe reproduces."""
    random_N = control_labels(label_N, seed)
    probed = fit_probe(
        train_ND, random_N, train_ND[:1], random_N[:1], kind=kind, strength=strength, seed=seed
    )
    return probed.training_accuracy


def control_labels(label_N: Labels, seed: int) -> Labels:
    """Return a random label a text, with the frequencies of the real ones (a permutation)."""
    return np.random.default_rng(seed).permutation(label_N)


def _new_probe(
    kind: Kind, strength: float, num_texts: int, seed: int
) -> LogisticRegression | MLPClassifier:
    match kind:
        case "linear":
            return LogisticRegression(C=1 / strength, max_iter=300, random_state=seed)
        case "mlp":  # scikit-learn adds the whole penalty, over the batch's size, to each batch
            batch = min(MLP_BATCH, num_texts)
            return MLPClassifier(
                (MLP_WIDTH,),
                alpha=strength * batch / num_texts,
                batch_size=batch,
                max_iter=MLP_EPOCHS,
                random_state=seed,
            )
        case _:
            assert_never(kind)
