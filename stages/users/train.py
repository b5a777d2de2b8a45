"""Generation and training for many users at once, on one frozen base.

In training a batch has rows of several users, and the loss is the sum over users of each user's
mean over its own response tokens. A user's gradient, its norm's limit and its order of examples
depend on that user alone, so every adapter is the same as if it were trained alone (to rounding).

Dimension key:  U users of a batch,  B rows,  L tokens,  V vocabulary.
"""

import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import weights_hash
from reward_models.context_limit import ContextLimit, max_positions
from reward_models.records import Demonstration
from stages.adapters.backbone import copy_sharing_frozen
from stages.adapters.config import Full, Restricted
from stages.chunked_logprobs import IGNORED
from stages.data.supervised import Example, collate, encode
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, UserAdapters, generate_responses
from stages.models import adapt
from stages.progress import Report, Step, silent
from stages.users.adapters import StackedAdapters, UserAdapter
from stages.users.config import UserAdaptersConfig
from stages.users.store import UserStore, read_adapter

MAX_NORM = 1.0  # of a user's gradient


def open_user_store(folder: Path, model: PreTrainedModel) -> UserStore:
    """Return the store of `model`'s users.

    Raises ValueError where it holds adapters of another base, and for a model that has one.
    """
    name = str(model.config.name_or_path)
    if isinstance(model, PeftModel):
        raise ValueError(
            f"this policy is an adapter on {name}; users' adapters need a whole model, which "
            "rlhf export-model writes"
        )
    return UserStore(folder, base_name=name, base_hash=weights_hash(model))


def generate_for_users(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: UserStore,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    *,
    users: Sequence[str],
    generator: torch.Generator,
    report: Report = silent,
) -> list[Sampled]:
    """Return one response to each prompt under the adapter of its user, `users[i]`.

    Rows of different users share a batch. Raises ValueError for a user without an adapter.
    """
    if len(users) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(users)} users; expected one a prompt")
    names = list(dict.fromkeys(users))
    index = {name: number for number, name in enumerate(names)}
    adapters = StackedAdapters([store.get(name) for name in names])
    with adapters.on(model):
        return generate_responses(
            model,
            tokenizer,
            prompts,
            sampling,
            generator=generator,
            report=report,
            users=UserAdapters(adapters, [index[name] for name in users]),
        )


def train_user_adapters(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Mapping[str, Sequence[Demonstration]],
    config: UserAdaptersConfig,
    store: UserStore,
    *,
    seed: int,
    report: Report = silent,
) -> None:
    """Train an adapter for each user who has none yet, `users_per_batch` of them at a time.

    An interrupted training resumes with the users who still have none. Raises ValueError for a user
    none of whose demonstrations fits.
    """
    free = ContextLimit("the model", max_positions(model.config)).without(
        config.adaptation.num_positions
    )
    max_tokens = free.at_most(config.max_tokens)
    examples = {
        name: _fitting(tokenizer, name, rows, max_tokens) for name, rows in demonstrations.items()
    }
    waiting = [name for name in examples if name not in store]
    done = len(examples) - len(waiting)
    total = len(examples) * config.steps
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    start = new_adapter(model, tokenizer, config.adaptation, seed) if waiting else None
    if config.activation_checkpointing:
        checkpoint_activations(model)
    for first in range(0, len(waiting), config.users_per_batch):
        group = waiting[first : first + config.users_per_batch]
        assert start is not None
        adapters = StackedAdapters([start] * len(group), trainable=True)
        batches = [_batches(examples[name], name, config, seed) for name in group]
        for step, loss in enumerate(_train(model, adapters, batches, config, pad), 1):
            at = done * config.steps + step * len(group)
            report(Step(at, total, {"users/loss_nats_per_token": loss}))
        for user, name in enumerate(group):
            store.put(name, adapters.adapter_of(user))
        done += len(group)


def new_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adaptation: Full | Restricted,
    seed: int,
) -> UserAdapter:
    """Return an untrained adapter, which every user begins with; `model` is frozen by it."""
    model.requires_grad_(False)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        adapted = adapt(copy_sharing_frozen(model), adaptation, tokenizer)
        adapted.save_pretrained(folder)
        return read_adapter(Path(folder))


def user_losses(logits_BLV: Tensor, labels_BL: Tensor, user_B: Tensor, num_users: int) -> Tensor:
    """Return nats per response token of each user, (U,): the mean over the tokens of its rows."""
    labels_BT = labels_BL[:, 1:]
    nats_BT = cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(labels_BT)
    zero_U = torch.zeros(num_users, device=nats_BT.device)
    tokens_U = zero_U.index_add(0, user_B, (labels_BT != IGNORED).sum(1).float())
    return zero_U.index_add(0, user_B, nats_BT.sum(1)) / tokens_U.clamp(min=1)


def limit_norms(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale each user's gradient, over all tensors together, to at most `limit`, in place."""
    squares_U = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    factor_U = (limit / squares_U.sqrt().clamp(min=1e-12)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor_U.view(-1, *[1] * (gradient.dim() - 1)))


def _train(
    model: PreTrainedModel,
    adapters: StackedAdapters,
    batches: Sequence[Iterator[list[Example]]],
    config: UserAdaptersConfig,
    pad: int,
) -> Iterator[float]:
    """Yield the mean loss over users after each step."""
    model.requires_grad_(False)
    stacks = [stack for stack in adapters.stacks if stack.requires_grad]
    optimiser = torch.optim.Adam(stacks, lr=config.learning_rate, betas=(0.9, 0.95))
    with adapters.on(model):
        for step in range(config.steps):
            rows = [next(batch) for batch in batches]
            user_B = torch.tensor([u for u, batch in enumerate(rows) for _ in batch])
            user_B = user_B.to(model.device)
            batch_inputs = {
                name: tensor.to(model.device)
                for name, tensor in collate(list(chain.from_iterable(rows)), pad).items()
            }
            labels_BL = batch_inputs.pop("labels")
            adapters.assign(user_B)
            logits_BLV = model(**batch_inputs, use_cache=False).logits
            loss_U = user_losses(logits_BLV, labels_BL, user_B, len(batches))
            optimiser.zero_grad()
            loss_U.sum().backward()  # type: ignore[no-untyped-call]
            limit_norms([s.grad for s in stacks if s.grad is not None], MAX_NORM)
            for group in optimiser.param_groups:
                # A cosine down to a tenth, as in stage one.
                cosine = (1 + math.cos(math.pi * step / config.steps)) / 2
                group["lr"] = config.learning_rate * (0.1 + 0.9 * cosine)
            optimiser.step()
            yield loss_U.mean().item()


def _batches(
    examples: Sequence[Example], name: str, config: UserAdaptersConfig, seed: int
) -> Iterator[list[Example]]:
    """Yield batches of a user's examples in shuffled rounds, without end."""
    rng = random.Random(f"users/{seed}/{name}")
    waiting: list[Example] = []
    while True:
        while len(waiting) < config.examples_per_step:
            waiting += rng.sample(list(examples), len(examples))
        yield waiting[: config.examples_per_step]
        waiting = waiting[config.examples_per_step :]


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    demonstrations: Sequence[Demonstration],
    max_tokens: int,
) -> list[Example]:
    encoded = [encode(tokenizer, one) for one in demonstrations]
    fitting = [example for example in encoded if len(example.ids) <= max_tokens]
    if not fitting:
        raise ValueError(
            f"user '{name}': none of {len(encoded)} demonstrations has at most {max_tokens} tokens"
        )
    return fitting
