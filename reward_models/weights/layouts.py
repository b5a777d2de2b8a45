"""Reward models in the layouts of transformers and PEFT, for programs without this package.

    a whole model   config.json and weights of its architecture's sequence classifier
    an adapter      PEFT's, with the head among its weights (`modules_to_save`)

In transformers the heads of decoders have no bias, and without one a score of an RMSNorm's output
has no constant. So in a run's folder the bias lies beside the model, as `score_bias` in config.json
and in reward.json: a score there is this package's less that constant, which changes no ranking.
`write_exported` puts it into the model: in the last norm's bias, where there is one and
b' = b + bias * w / |w|^2 gives w . b' = w . b + bias, else in a head of a few lines of code.
"""

import copy
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from reward_models.atomic_files import write_json
from reward_models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, read_json

HEAD_KEY = "base_model.model.score.weight"  # of an adapter's weights, as PEFT names it
TOLERANCE = 1e-5  # of a score, relative to the head's and the bias's size
CODE = "modeling_reward.py"
TEMPLATE = '''"""The classifier of transformers with a bias in its head, by `rlhf export-model`."""

from torch import nn
from transformers import {parent}


class {parent}WithBias({parent}):
    def __init__(self, config):
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=True)
        self.post_init()
'''


def as_classifier(
    backbone: PreTrainedModel, head_1D: Tensor, bias: float, pad_id: int | None = None
) -> PreTrainedModel | None:
    """Return the sequence classifier of transformers around a backbone; None where there is none.

    The backbone is shared. The bias is noted in the config, and is in no score.
    """
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(backbone.config), None)
    if kind is None or isinstance(kind, tuple):
        return None
    config = copy.deepcopy(backbone.config)
    config.num_labels = 1
    config.score_bias = bias
    if pad_id is not None:
        config.get_text_config().pad_token_id = pad_id
    with torch.device("meta"):
        model = cast(PreTrainedModel, kind(config))
    parts, name = dict(model.named_children()), model.base_model_prefix
    score = parts.get("score")
    if not isinstance(score, nn.Linear) or type(parts.get(name)) is not type(backbone):
        return None
    if score.bias is not None or score.weight.shape != head_1D.shape:
        return None
    model.add_module(name, backbone)
    score.weight = nn.Parameter(head_1D.detach().clone(), requires_grad=False)
    return model if not any(p.is_meta for p in model.parameters()) else None


def add_head(folder: Path, head_1D: Tensor) -> None:
    """Write the head into the folder of a LoRA, so that PEFT loads it as a classifier."""
    path, config = folder / ADAPTER_WEIGHTS[0], read_json(folder / ADAPTER_CONFIG)
    if config["peft_type"] != "LORA":  # the other families are of this package
        return
    head = {HEAD_KEY: head_1D.detach().cpu().contiguous()}
    save_file(load_file(path) | head, path, metadata={"format": "pt"})
    changes = {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "auto_mapping": None}
    write_json(folder / ADAPTER_CONFIG, config | changes)


def config_without_head(folder: Path) -> PeftConfig:
    """Return PEFT's config of an adapter for its backbone, a causal language model."""
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    if isinstance(config, LoraConfig) and config.task_type == "SEQ_CLS":
        config.task_type, config.modules_to_save = "CAUSAL_LM", None
    return config


def write_exported(
    backbone: PreTrainedModel, head_1D: Tensor, bias: float, pad_id: int | None, folder: Path
) -> bool:
    """Write a classifier with the bias in its scores; return true where that takes code.

    The backbone is changed. Raises ValueError for an architecture without a classifier.
    """
    head_1D = head_1D.detach()
    is_folded = bias == 0.0 or _fold(backbone, head_1D, bias)
    model = as_classifier(backbone, head_1D, 0.0 if is_folded else bias, pad_id)
    if model is None:
        raise ValueError(
            f"transformers has no sequence classifier with one head for {type(backbone).__name__}"
        )
    if is_folded:
        model.save_pretrained(str(folder))
        return False
    score = nn.Linear(head_1D.shape[1], 1, device="meta")
    score.weight = nn.Parameter(head_1D.clone(), requires_grad=False)
    score.bias = nn.Parameter(torch.full((1,), bias), requires_grad=False)
    model.add_module("score", score)
    model.save_pretrained(str(folder))
    parent = type(model).__name__
    code = f"{CODE.removesuffix('.py')}.{parent}WithBias"
    config = read_json(folder / CONFIG) | {"auto_map": {"AutoModelForSequenceClassification": code}}
    write_json(folder / CONFIG, config)
    (folder / CODE).write_text(TEMPLATE.format(parent=parent), encoding="utf-8")
    return True


@torch.no_grad()
def _fold(backbone: PreTrainedModel, head_1D: Tensor, bias: float) -> bool:
    """Add the bias to every score by the last norm's own; false where no norm's is alone in it."""
    head_D = head_1D[0]
    step_D = bias * head_D / head_D.square().sum()
    before_L = _scores(backbone, head_D)
    for norm in _outer_norms(backbone):
        saved_D = norm.bias.clone()
        norm.bias.add_(step_D.to(norm.bias.dtype))
        error = float((_scores(backbone, head_D) - before_L - bias).abs().max())
        if error <= TOLERANCE * (abs(bias) + float(before_L.abs().max())):
            return True
        norm.bias.copy_(saved_D)
    return False


def _outer_norms(backbone: PreTrainedModel) -> list[nn.LayerNorm]:
    """Return the norms with a bias outside of the layers."""
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]
    inside = {id(m) for stack in stacks for m in stack.modules()}
    norms = [m for m in backbone.modules() if isinstance(m, nn.LayerNorm) and id(m) not in inside]
    return [norm for norm in norms if norm.bias is not None]


def _scores(backbone: PreTrainedModel, head_D: Tensor) -> Tensor:
    """Return score_L at each token of an example, without a bias."""
    rows = backbone.get_input_embeddings().get_parameter("weight").shape[0]
    ids_BL = torch.linspace(0, rows - 1, 8, device=backbone.device).long()[None]
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    state_LD: Tensor = backbone(**inputs, use_cache=False).last_hidden_state[0]
    return state_LD.float() @ head_D.float()
