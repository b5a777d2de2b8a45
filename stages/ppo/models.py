"""The four models of stage three, loaded so that they belong together."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.model import RewardModel
from reward_models.trunk import transformer
from stages.adaptation.sets import share_frozen, twin
from stages.adaptation.top_layers import train_layers
from stages.families import Full, Restricted
from stages.models import adapt, load_base, load_tokenizer, tokenizer_hash, with_saved_set


@dataclass(frozen=True, slots=True)
class Models:
    """Policy and critic are trained; the reference and the reward model stay as they are.

    All four are in eval mode for good: what is off while sampling must be off in training.
    """

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: RewardModel
    reward: RewardModel


def load_models(
    policy: str | Path,
    reward_model: Path,
    adaptation: Full | Restricted,
    *,
    seed: int,
    device: torch.device,
) -> Models:
    """Load all four. Raises ValueError where the reward model was trained with another tokenizer.

    The reference is a snapshot of the policy as PPO finds it, sets included: a set switched off
    would be the base before fine-tuning. The critic starts from the reward model (appendix C.4), as
    a set of the same family. What is frozen in several of the four is in memory once: a reward
    model that belongs on the policy's base takes that one over and never loads another.
    """
    tokenizer = load_tokenizer(policy)
    base = load_base(policy)
    spare = None if isinstance(adaptation, Full) else twin(base.requires_grad_(False))
    reward = RewardModel.load(reward_model, spare)
    reward.card.require_tokenizer(tokenizer_hash(tokenizer), str(policy))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # new adapter weights are drawn from the global generator
        trained = adapt(with_saved_set(base, policy), adaptation, tokenizer)
    if isinstance(adaptation, Full) and is_whole(reward):
        train_layers(transformer(reward.carrier), adaptation.top_layers)
    share_frozen(trained, reward)
    reward.bias.requires_grad_(True)  # the critic trains a bias of its own
    reference, critic = twin(trained), twin(reward)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    everything: list[torch.nn.Module] = [trained, reference, critic, reward]
    for model in everything:
        model.to(device)
        model.train(False)
    return Models(tokenizer, trained, reference, critic, reward)


def is_whole(reward: RewardModel) -> bool:
    """Whether it has a transformer of its own, rather than a set or a head on a base."""
    return not isinstance(reward.carrier, PeftModel) and not reward.card.head_only


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves, by name; a tied one appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
