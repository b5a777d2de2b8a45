"""The models of stage three, loaded so that they belong together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import hidden_size, transformer
from reward_models.context_limit import ContextLimit, context_limit
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.adapters.backbone import copy_sharing_frozen, share_frozen, train_layers
from stages.adapters.config import Bottleneck, Full, LoRA, Probe, Restricted
from stages.models import adapt, load_base, load_tokenizer, tokenizer_hash, with_saved_adapter
from stages.ppo.config import Joint, PPOConfig, Separate, SharedCritic
from stages.ppo.joint import require_one_pass
from stages.ppo.lower_states import LowerStates
from stages.ppo.value_head import ValueHead
from stages.prompt_lengths import adapted_context_limit, require_fit

SEPARATE = Separate()
UNFELT = (LoRA, Bottleneck, Probe)  # a new set adds exact zeros to what the base says


@dataclass(frozen=True, slots=True)
class Models:
    """Policy and critic are trained; the reference and the reward model stay as they are.

    A critic that is a `ValueHead` reads the policy's pass; where `joint`, the reward model's head
    reads the reference's. All are in eval mode for good: what is off while sampling must be off in
    training. Where `packed`, all can read episodes in one row (`reading.lay_out`), else in rows
    that are padded on the left or, where `pads_right`, on the right. `lower` are states that their
    passes need not compute again.
    """

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: RewardModel | ValueHead
    reward: RewardModel
    joint: bool = False
    packed: bool = False
    pads_right: bool = False
    lower: LowerStates = field(default_factory=LowerStates)


def load_models(
    policy: str | Path,
    reward_model: Path,
    adaptation: Full | Restricted,
    sharing: Separate | SharedCritic | Joint = SEPARATE,
    *,
    seed: int,
    device: torch.device,
) -> Models:
    """Load all four. Raises ValueError where the reward model was trained with another tokenizer.

    The reference is a snapshot of the policy as PPO finds it, sets included: a set switched off
    would be the base before fine-tuning. A set that is new and changes nothing yet is left out of
    it, which saves its arithmetic. The critic starts from the reward model (appendix C.4), as
    a set of the same family; one that is a head alone starts at 0. What is frozen in several of the
    four is in memory once: a reward model that belongs on the policy's base takes that one over and
    never loads another. ValueError too where `sharing` is joint and the score cannot be read off
    the reference's pass.
    """
    tokenizer = load_tokenizer(policy)
    base = load_base(policy)
    spare = (
        None if isinstance(adaptation, Full) else copy_sharing_frozen(base.requires_grad_(False))
    )
    bare = None if spare is None else copy_sharing_frozen(spare)
    reward = RewardModel.load(reward_model, spare)
    reward.card.require_tokenizer(tokenizer_hash(tokenizer), str(policy))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # new adapter weights are drawn from the global generator
        found = with_saved_adapter(base, policy)
        trained = adapt(found, adaptation, tokenizer)
    own_critic = isinstance(sharing, Separate)
    if not own_critic:
        reward.requires_grad_(False)
    elif isinstance(adaptation, Full) and is_whole(reward):
        train_layers(transformer(reward.backbone), adaptation.top_layers)
    share_frozen(trained, reward)
    reward.bias.requires_grad_(own_critic)  # the critic trains a bias of its own
    critic = _own_critic(reward) if own_critic else ValueHead(hidden_size(transformer(trained)))
    unfelt = isinstance(adaptation, UNFELT) and not isinstance(found, PeftModel)
    reference = bare if bare is not None and unfelt else copy_sharing_frozen(trained)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    if isinstance(sharing, Joint):
        require_one_pass(reference, reward, str(policy))
        share_frozen(reference, reward)
    everything: list[torch.nn.Module] = [trained, reference, critic, reward]
    for model in everything:
        model.to(device)
        model.train(False)
    return Models(tokenizer, trained, reference, critic, reward, isinstance(sharing, Joint))


def _own_critic(reward: RewardModel) -> RewardModel:
    """The reward model again; where nothing but a head can move, that starts at 0.

    A reward model's head was trained to read the last token alone. Where the layers below cannot
    come to meet it, its values stayed worse than a constant for a whole run (docs/ppo.md).
    """
    critic = copy_sharing_frozen(reward)
    if critic.card.head_only:
        torch.nn.init.zeros_(critic.head.weight)
        torch.nn.init.zeros_(critic.bias)
    return critic


def is_whole(reward: RewardModel) -> bool:
    """Whether it has a transformer of its own, rather than a set or a head on a base."""
    return not isinstance(reward.backbone, PeftModel) and not reward.card.head_only


def require_ppo_fits(
    config: PPOConfig, policy: str | Path, reward_model: Path, prompts: Sequence[Prompt]
) -> None:
    """Raise ValueError for texts longer than policy or reward model have positions for."""
    limits = [
        ContextLimit("the policy", adapted_context_limit(policy, config.adaptation).tokens),
        ContextLimit("the reward model", context_limit(reward_model).tokens),
    ]
    require_fit(load_tokenizer(policy), prompts, config.sampling.max_new_tokens, limits, "PPO")
    if config.pretraining is not None:
        limits[0].require(config.pretraining.tokens_per_example, "pretraining.tokens_per_example")
