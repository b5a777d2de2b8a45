"""The four models of stage three, loaded so that they belong together.

Dimension key:  N response tokens,  L tokens of an example,  D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.atomic_files import written_aside
from reward_models.backbone import hidden_size, transformer
from reward_models.context_limit import ContextLimit
from reward_models.model import RewardModel
from reward_models.model_card import RewardCard
from reward_models.model_files import ADAPTER_CONFIG
from reward_models.records import Prompt
from reward_models.weights.formats import rounding
from stages.adapters.backbone import copy_sharing_frozen, share_frozen, train_layers
from stages.adapters.cached_layers import CachedLayers
from stages.adapters.config import Bottleneck, Full, LoRA, Probe, Restricted
from stages.distributed.idle import Idle
from stages.generation.classifier import SequenceClassifier, load_sequence_classifier
from stages.generation.score import require_readable, scorer_limits
from stages.models import adapt, load_base, load_tokenizer, to_device, with_saved_adapter
from stages.ppo.config import JointModels, PPOConfig, SeparateModels, SharedCritic
from stages.precision import EXACT, Numerics, narrow_frozen
from stages.prompt_lengths import adapted_context_limit, require_fit

SEPARATE = SeparateModels()
IDENTITY_AT_START = (LoRA, Bottleneck, Probe)  # a new adapter adds exact zeros to the base
VALUE_HEAD = "value_head.safetensors"
TOLERANCE = 1e-5  # of a hidden state, relative to the largest


class ValueHead(nn.Module):
    """A critic without a transformer: value_t = head . h_t + bias.

    h_t is the policy's last hidden state before token t, so one forward pass of the policy gives
    logits and values. The head starts at 0: a reward model's head was trained on the last token
    alone, and values read off it explained less of the returns than a constant for many iterations
    (docs/ppo.md).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        # Of one dimension, because DeepSpeed does not shard a scalar.
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def forward(self, state_ND: Tensor) -> Tensor:
        """value_N in float32, under autocast too."""
        with torch.autocast(state_ND.device.type, enabled=False):
            state_ND = state_ND.to(self.head.weight.dtype)
            value_N: Tensor = self.head(state_ND).squeeze(-1) + self.bias
        return value_N

    def save(self, folder: Path) -> None:
        """Write the head into `folder`."""
        tensors = {name: x.contiguous() for name, x in self.state_dict().items()}
        with written_aside(folder / VALUE_HEAD) as aside:
            save_file(tensors, aside)


@dataclass(frozen=True, slots=True)
class Models:
    """Policy and critic are trained; the reference and the reward model stay as they are.

    All are in eval mode for good: what is off while sampling must be off in training. A critic that
    is a `ValueHead` takes the policy's states; where `joint`, the reward model's head takes the
    reference's. `numerics`, `packed`, `pads_right`, `lower` and `tokens_at_once` (a chunk of
    logits; None: any number) tell `stages.ppo.forward` how to compute; `idle` are models that wait
    on the host. A reward model with a tokenizer of its own scores texts: `prompts` has those of the
    token ids.
    """

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: RewardModel | ValueHead
    reward: RewardModel | SequenceClassifier
    numerics: Numerics = EXACT
    joint: bool = False
    packed: bool = False
    pads_right: bool = False
    prompts: Mapping[tuple[int, ...], Prompt] = field(default_factory=dict)
    lower: CachedLayers = field(default_factory=CachedLayers)
    tokens_at_once: int | None = None
    idle: Idle = field(default_factory=Idle)

    def in_chunks(self, tokens: int) -> bool:
        """Return true where the logits of so many tokens are too many to be there at once."""
        return self.tokens_at_once is not None and tokens > self.tokens_at_once

    def autocast(self) -> torch.autocast:
        """Return the context of trials that any of the four may be in."""
        return self.numerics.autocast(self.policy, self.reference, self.critic, self.reward)


def load_models(
    policy: str | Path,
    reward_model: str | Path,
    adaptation: Full | Restricted,
    sharing: SeparateModels | SharedCritic | JointModels = SEPARATE,
    *,
    seed: int,
    device: torch.device,
    numerics: Numerics = EXACT,
) -> Models:
    """Load all four. Raises ValueError where a reward model of token ids has another tokenizer.

    The reference is a snapshot of the policy as PPO begins, adapters included: with an adapter
    switched off it would be the base before fine-tuning. A new adapter that changes nothing yet is
    left out of it, which saves its arithmetic. The critic starts from the reward model (appendix
    C.4), as an adapter of the same family; one that is a head alone starts at 0, and so does the
    head of one that starts from the policy, because the reward model is a classifier of another
    library. Weights that are frozen in several of the four are in memory once: a reward model on
    the policy's base uses that one and never loads another. Under autocast the matrices of what is
    not trained are in the dtype of computing, which changes no number. Raises ValueError too where
    `sharing` is joint and the score cannot be computed from the reference's states.
    """
    tokenizer = load_tokenizer(policy)
    base = load_base(policy, numerics.of(adaptation))
    spare = (
        None if isinstance(adaptation, Full) else copy_sharing_frozen(base.requires_grad_(False))
    )
    bare = None if spare is None else copy_sharing_frozen(spare)
    if RewardCard.is_in(reward_model):
        moves = isinstance(sharing, SeparateModels) and trains_whole(Path(reward_model))
        weights = numerics.trained if moves else numerics.frozen
        reward: RewardModel | SequenceClassifier = RewardModel.load(reward_model, spare, weights)
    else:
        reward = load_sequence_classifier(reward_model, numerics.frozen)
    require_readable(reward, tokenizer, policy)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # new adapter weights are drawn from the global generator
        start = with_saved_adapter(base, policy)
        trained = adapt(start, adaptation, tokenizer)
    critic = _critic(trained, reward, adaptation, sharing, seed)
    is_identity = isinstance(adaptation, IDENTITY_AT_START) and not isinstance(start, PeftModel)
    reference = bare if bare is not None and is_identity else copy_sharing_frozen(trained)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    if isinstance(sharing, JointModels):
        _require_same_states(reference, reward, str(policy))
        share_frozen(reference, reward)
    narrow_frozen([reference, reward], numerics.compute, unless_in=[trained, critic])
    roles: list[nn.Module] = [trained, reference, critic, reward]
    for model in roles:
        to_device(model, device)
        model.train(False)
    joint = isinstance(sharing, JointModels)
    return Models(tokenizer, trained, reference, critic, reward, numerics, joint)


def trains_whole(reward_model: Path) -> bool:
    """Return true for a saved reward model that is neither an adapter nor a head on a base."""
    is_adapter = (reward_model / ADAPTER_CONFIG).is_file()
    return not is_adapter and not RewardCard.read(reward_model)[0].head_only


def is_whole(reward: RewardModel) -> bool:
    """Return true for a transformer of its own, rather than an adapter or a head on a base."""
    return not isinstance(reward.backbone, PeftModel) and not reward.card.head_only


def require_ppo_fits(
    config: PPOConfig, policy: str | Path, reward_model: str | Path, prompts: Sequence[Prompt]
) -> None:
    """Raise ValueError for texts longer than policy or reward model have positions for."""
    limits = [
        ContextLimit("the policy", adapted_context_limit(policy, config.adaptation).tokens),
        *(ContextLimit("the reward model", own.tokens) for own in scorer_limits(reward_model)),
    ]
    require_fit(load_tokenizer(policy), prompts, config.sampling.max_new_tokens, limits, "PPO")
    if config.pretraining is not None:
        limits[0].require(config.pretraining.tokens_per_example, "pretraining.tokens_per_example")


def unembedding(model: PreTrainedModel) -> nn.Module:
    """The module that turns last hidden states into logits."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(head, nn.Module)
    return head


def _critic(
    policy: PreTrainedModel,
    reward: RewardModel | SequenceClassifier,
    adaptation: Full | Restricted,
    sharing: SeparateModels | SharedCritic | JointModels,
    seed: int,
) -> RewardModel | ValueHead:
    """The critic that `load_models` describes, on weights that it shares with policy and reward."""
    is_separate = isinstance(sharing, SeparateModels)
    if isinstance(reward, RewardModel):
        if not is_separate:
            reward.requires_grad_(False)
        elif isinstance(adaptation, Full) and is_whole(reward):
            train_layers(transformer(reward.backbone), adaptation.top_layers)
        share_frozen(policy, reward)
        reward.bias.requires_grad_(is_separate)  # the critic trains a bias of its own
    if not is_separate:
        return ValueHead(hidden_size(transformer(policy)))
    if isinstance(reward, RewardModel):
        return _critic_of(reward)
    return _critic_from(policy, adaptation, seed)


def _critic_from(policy: PreTrainedModel, adaptation: Full | Restricted, seed: int) -> RewardModel:
    """A critic on a copy of the policy, with the same parameters trained, and a head of zeros."""
    name, copied = str(policy.config.name_or_path), copy_sharing_frozen(policy)
    if isinstance(adaptation, Probe):  # its adapter is on the unembedding, which no critic has
        base = copied.get_base_model() if isinstance(copied, PeftModel) else copied
        critic = RewardModel.probe(base, seed, base=name, pooling="last", inner_width=0)
    else:
        critic = RewardModel.on(copied, seed, base=name)
    nn.init.zeros_(critic.head.weight)
    critic.bias.requires_grad_(True)
    return critic


def _critic_of(reward: RewardModel) -> RewardModel:
    """A copy of the reward model; where only its head is trained, that starts at 0.

    A reward model's head was trained on the last token alone. Where the layers below cannot adapt
    to it, its values stayed worse than a constant for a whole run (docs/ppo.md).
    """
    critic = copy_sharing_frozen(reward)
    if critic.card.head_only:
        nn.init.zeros_(critic.head.weight)
        nn.init.zeros_(critic.bias)
    return critic


def _require_same_states(
    reference: PreTrainedModel, reward: RewardModel | SequenceClassifier, policy: str
) -> None:
    """Raise ValueError unless the reward model is a head on the reference's last hidden states.

    That is a probe on the very model that PPO starts from. An adapter that changes nothing yet,
    such as a new LoRA, does not matter; a fine-tuned one does, because the probe was trained
    without it. To be called before models are moved or sharded.
    """
    expected = (
        "expected a probe on the model that PPO starts from (reward_base: sft, sft_choice: loss, "
        "reward.adaptation: {family: probe}), or models.kind shared-critic"
    )
    if isinstance(reward, SequenceClassifier) or not reward.card.head_only:
        raise ValueError(
            "models.kind is joint, but the reward model trained more than its head; " + expected
        )
    if reward.card.pooling != "last":
        raise ValueError(
            f"models.kind is joint, but the reward model pools by {reward.card.pooling}; expected "
            "reward.adaptation.pooling last: a forward pass keeps the states of the response alone"
        )
    gap = _state_gap(reference, reward)
    if not gap <= rounding(reference, TOLERANCE):
        raise ValueError(
            f"models.kind is joint, but the reward model is a head on {reward.card.base}, whose "
            f"hidden states are not those of {policy} (they differ by {gap:.1g}); {expected}"
        )


@torch.no_grad()
def _state_gap(reference: PreTrainedModel, reward: RewardModel) -> float:
    """The largest relative difference of the two on an example; infinite for other shapes."""
    rows = reference.get_input_embeddings().get_parameter("weight").shape[0]
    ids_BL = torch.linspace(0, rows - 1, 16).long()[None]
    position_BL = torch.arange(ids_BL.shape[1])[None]
    states: list[Tensor] = []
    handle = unembedding(reference).register_forward_pre_hook(lambda _, x: states.append(x[0][0]))
    try:
        mask_BL = torch.ones_like(ids_BL)
        reference(ids_BL, attention_mask=mask_BL, position_ids=position_BL, use_cache=False)
    finally:
        handle.remove()
    state_LD: Tensor = reward.states(ids_BL, mask_BL.bool(), position_BL, position_BL)[0]
    if state_LD.shape != states[0].shape:
        return float("inf")
    return float((state_LD - states[0]).abs().max() / state_LD.abs().max())
