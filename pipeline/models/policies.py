"""The policy that a person means by a run, a stage or a model folder, and its export."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runs.stage import in_round, last_round
from reward_models.model_card import RewardCard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

BEST_FIRST = ("ppo-ptx", "ppo", "select", "sft")


def model_folder(folder: Path) -> Path:
    """Return the reward model in `folder`, a stage's or its own; else `policy_folder`."""
    models = (path for path in (folder, folder / "model") if RewardCard.is_in(path))
    return next(models, None) or policy_folder(folder)


def policy_folder(folder: Path) -> Path:
    """Return the folder of the policy; of a run, that of its last finished stage.

    Raise ValueError where there is none.
    """
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder
    if (folder / "model").is_dir():
        return folder / "model"
    later = [
        in_round(name, number)
        for number in range(last_round(folder, "sample"), 1, -1)
        for name in ("ppo-ptx", "ppo")
    ]
    for stage in (*later, *BEST_FIRST):
        if (folder / stage / "manifest.json").is_file():
            return folder / stage / "model"
    raise ValueError(
        f"{folder}: no policy there; expected a run with a finished stage, a stage, or a model"
    )


def export_model(folder: Path, out: Path) -> Path:
    """Write a policy, or a reward model as a sequence classifier, as a plain model folder.

    Adapters are merged, and weights that are quantised in their files dequantised. Raises
    ValueError if `out` is taken.
    """
    from reward_models.atomic_files import written_aside
    from stages.models import load_tokenizer, save_policy

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; expected a new folder for the model")
    with written_aside(out) as aside:
        if RewardCard.is_in(folder):
            aside.mkdir(parents=True)
            _export_reward(folder, aside)
        else:
            save_policy(_whole_policy(folder), load_tokenizer(folder), aside)
        manifest = folder.parent / "manifest.json"
        if manifest.is_file():
            shutil.copy(manifest, aside / "origin.json")
    return out


def _whole_policy(folder: Path) -> "PreTrainedModel":
    """Return a policy without adapter and quantised weights, in the dtype of its base's files."""
    from peft import PeftModel
    from torch import nn
    from transformers import AutoConfig

    from reward_models.weights.formats import dequantise, is_quantised
    from stages.adapters.config import Full
    from stages.models import adapt, load_base, with_saved_adapter

    base = load_base(folder)
    quantised = is_quantised(base)
    dequantise(base)  # before there is an adapter on it
    policy = with_saved_adapter(base, folder)
    whole = adapt(policy, Full())
    if quantised or isinstance(policy, PeftModel):
        stored = AutoConfig.from_pretrained(str(base.config.name_or_path)).dtype
        if stored is not None:
            nn.Module.to(whole, stored)
    return whole


def _export_reward(folder: Path, out: Path) -> None:
    """Write a reward model whose scores in transformers are its own, bias included."""
    from peft import PeftModel

    from reward_models.backbone import transformer
    from reward_models.model import RewardModel
    from reward_models.weights.formats import dequantise, is_quantised
    from reward_models.weights.layouts import CODE, write_exported
    from stages.models import load_base, load_tokenizer, merged

    model = RewardModel.load(folder)
    if is_quantised(model.backbone):
        base = load_base(model.card.base)
        dequantise(base)
        model = RewardModel.load(folder, base)
    if model.inner is not None or model.card.pooling != "last":
        raise ValueError(
            f"{folder}: a probe with an MLP or of mean states; no sequence classifier of "
            "transformers has its head"
        )
    adapted = model.backbone
    backbone = transformer(merged(adapted)) if isinstance(adapted, PeftModel) else adapted
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(folder if has_tokenizer else model.card.base)
    weight, bias = model.head.weight, model.bias.item()
    if write_exported(backbone, weight, bias, tokenizer.pad_token_id, out):
        log.warning(
            "no weight of this architecture can add the bias %.4g to its scores: %s does; load %s "
            "with trust_remote_code=True, else they lack it",
            *(bias, CODE, folder),
        )
    tokenizer.save_pretrained(str(out))
