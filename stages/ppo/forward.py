"""Forward passes of the four models over episodes: the plain ones, and those that are quicker.

    plain    a left-padded row for each episode, four models with a forward pass each
    packed   all episodes in one row without padding (`reward_models.packed_attention`), where those
             that share a prompt are branches of it: it is computed once
    shared   models.kind shared-critic: policy + value head | reference | reward model
             models.kind joint: policy + value head | reference + the reward model's head
    cached   the states below the lowest trained layer, computed once a rollout
             (`stages.adapters.cached_layers`); the graphs of the rollout's own forward passes, for
             the first minibatch (`evaluate`)
    chunked  of many tokens the logits are made a chunk at a time (`stages.chunked_logprobs`)

All give the same numbers, up to rounding. Rows are padded on the right for models that padding
before a text would change.

Dimension key:  E episodes,  B rows,  L tokens of a row,  N response tokens of all episodes in one
list,  S last columns of all rows in one list,  V vocabulary,  D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.model import RewardModel
from reward_models.packed_attention import PackedSegments
from stages.chunked_logprobs import (
    IGNORED,
    in_place_of_logits,
    logprobs_and_entropy,
    summed_nll,
)
from stages.data.template import end_id, response_text
from stages.distributed.network import Network
from stages.generation.classifier import SequenceClassifier
from stages.generation.score import score_texts
from stages.ppo import losses
from stages.ppo.models import Models, ValueHead, unembedding
from stages.ppo.rollout import (
    Episodes,
    Layout,
    Rollout,
    by_length,
    lay_out,
    right_aligned,
    write,
)


@dataclass(frozen=True, slots=True)
class Forward:
    """The outputs of the policy for some episodes, with their graph, and of a separate critic.

    `rows` are the episodes' rows in the rollout. `state_ND` are the states that a value head needs,
    `value_N` the values of a separate critic if it has run already.
    """

    rows: Tensor
    layout: Layout
    logprob_N: Tensor
    state_ND: Tensor | None = None
    value_N: Tensor | None = None


def evaluate(
    models: Models,
    episodes: Episodes,
    *,
    temperature: float,
    batch_size: int | None,
    minibatches: Sequence[Tensor] | None = None,
    sampler_logprobs: Sequence[Sequence[float]] = (),
    keep_graphs: bool = False,
) -> tuple[Rollout, list[Forward]]:
    """Log-probabilities, values and scores of the episodes by all four models, in batches.

    `minibatches` are the rows as an update will take them, so that rounding is the same there;
    None: all at once. Without gradients; with `keep_graphs` the forward passes of policy and critic
    come back, to go backward through. The reward model scores every ended response with the end of
    turn that it was trained with.
    """
    models.lower.forget()  # of the last rollout
    num_episodes, device = len(episodes.ended_B), episodes.ids_BL.device
    tables = [torch.zeros_like(episodes.response_BT, dtype=torch.float32) for _ in range(4)]
    tables.append(right_aligned(sampler_logprobs, tables[0]))
    rollout = Rollout(episodes, torch.zeros(num_episodes, device=device), *tables)
    if minibatches is None:
        minibatches = [torch.arange(num_episodes, device=device)]
    batches = (by_length(episodes, rows, batch_size) for rows in minibatches)
    forwards: list[Forward] = []
    whole: list[tuple[Tensor, Episodes, Layout]] = []
    with torch.no_grad():
        for rows in chain.from_iterable(batches):
            batch = episodes.take(rows)
            token_N = batch.response_tokens()[batch.response_BT]
            # As the reward model knows its texts, for the scores.
            layout = lay_out_for(models, batch.ended_with(end_id(models.tokenizer)))
            whole.append((rows, batch, layout))
            with torch.set_grad_enabled(keep_graphs):
                old_N, entropy_N, state_ND = policy_logprobs(
                    models, layout, models.policy, token_N, temperature, with_entropy=True
                )
                value_N = values(models, layout, state_ND)
            if keep_graphs:
                separate_N = value_N if state_ND is None else None
                forwards.append(Forward(rows, layout, old_N, state_ND, separate_N))
            write(rollout.old_BT, rows, batch, old_N)
            assert entropy_N is not None
            write(rollout.entropy_BT, rows, batch, entropy_N)
            write(rollout.value_BT, rows, batch, value_N)
        with models.idle.on_device():
            for rows, batch, layout in whole:
                token_N = batch.response_tokens()[batch.response_BT]
                reference_N, score_E = reference_logprobs_and_scores(
                    models, layout, token_N, temperature
                )
                write(rollout.reference_BT, rows, batch, reference_N)
                score_E = text_scores(models, batch) if score_E is None else score_E
                rollout.score_B[rows] = score_E
    return rollout, forwards


def policy_forwards(
    models: Models,
    policy: Network,
    episodes: Episodes,
    rows: Tensor,
    *,
    size: int,
    temperature: float,
) -> Iterator[Forward]:
    """The policy's forward passes over `rows`, in micro-batches of at most `size`."""
    for part in by_length(episodes, rows, size):
        batch = episodes.take(part)
        token_N = batch.response_tokens()[batch.response_BT]
        layout = lay_out_for(models, batch)
        logprob_N, _, state_ND = policy_logprobs(models, layout, policy.model, token_N, temperature)
        yield Forward(part, layout, logprob_N, state_ND)


def backward(
    models: Models,
    policy: Network,
    critic: Network,
    forward: Forward,
    policy_loss: Tensor,
    value_loss: Callable[[Tensor], Tensor],
    *,
    value_coefficient: float,
) -> Tensor:
    """Add the gradients of both losses to the two networks; return value_N without its graph.

    A separate critic runs when the policy's graph is gone, so that one graph is in memory at a
    time. A value head's loss moves the policy too, by `value_coefficient`.
    """
    if forward.state_ND is None:
        policy.backward(policy_loss)
        value_N = forward.value_N
        if value_N is None:
            value_N = critic_values(models, forward.layout, critic.model)
    else:
        if value_coefficient:
            # The head may be an engine's and so have its own backward pass, from its own states.
            leaf_ND = forward.state_ND.detach().requires_grad_()
            value_N = models.critic(leaf_ND)  # an engine would count it as its own forward
            (slope_ND,) = torch.autograd.grad(value_loss(value_N), leaf_ND)
            policy_loss = policy_loss + value_coefficient * (forward.state_ND * slope_ND).sum()
        policy.backward(policy_loss)
        value_N = critic.model(forward.state_ND.detach())
    critic.backward(value_loss(value_N))
    return value_N.detach()


def lay_out_for(models: Models, episodes: Episodes) -> Layout:
    """The layout that suits the models."""
    return lay_out(episodes, packed=models.packed, right=models.pads_right)


def policy_logprobs(
    models: Models,
    layout: Layout,
    policy: nn.Module,
    token_N: Tensor,
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """logprob_N of the response tokens, entropy_N where asked for, and state_ND.

    Of many tokens, a chunk of logits is there at a time. The entropy has no gradient; `state_ND` is
    as in `policy_logits`.
    """
    if not models.in_chunks(len(token_N)):
        logits_NV, state_ND = policy_logits(models, layout, policy)
        logprob_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
        entropy_N = losses.entropy(logits_NV.detach(), temperature) if with_entropy else None
        return logprob_N, entropy_N, state_ND
    with models.lower.cached(models.policy, layout):
        logprob_N, entropy_N, state_SD = _in_chunks(
            models, models.policy, policy, layout, token_N, temperature, with_entropy=with_entropy
        )
    needs_states = isinstance(models.critic, ValueHead)
    return logprob_N, entropy_N, state_SD[layout.predict_N] if needs_states else None


def policy_logits(
    models: Models, layout: Layout, policy: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """logits_NV of the response tokens, and state_ND before them where a value head needs those.

    `policy` is the models' own or an engine around it.
    """
    compute = models.numerics.autocast(models.policy)
    with compute, models.lower.cached(models.policy, layout):
        if not isinstance(models.critic, ValueHead):
            return response_logits(policy, layout), None
        head = unembedding(models.policy)
        logits_NV, state_SD = response_logits_and_states(policy, layout, head)
        return logits_NV, state_SD[layout.predict_N]


def critic_values(models: Models, layout: Layout, critic: nn.Module) -> Tensor:
    """value_N before the response tokens, by a separate critic or an engine around it."""
    assert isinstance(models.critic, RewardModel)
    compute = models.numerics.autocast(models.critic)
    with compute, models.lower.cached(models.critic, layout):
        return response_values(critic, layout)


def values(models: Models, layout: Layout, state_ND: Tensor | None) -> Tensor:
    """value_N before the response tokens; `state_ND` comes from `policy_logits`.

    A value head gets no gradient to the policy this way.
    """
    if state_ND is None:
        return critic_values(models, layout, models.critic)
    value_N: Tensor = models.critic(state_ND.detach())
    return value_N


def reference_and_scores(models: Models, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """logits_NV of the reference, and the reward model's score_E of each response.

    No scores by a reward model with a tokenizer of its own: see `text_scores`.
    """
    compute = models.numerics.autocast(models.reference)
    with compute, models.lower.cached(models.reference, layout):
        if models.joint and isinstance(models.reward, RewardModel):
            head = unembedding(models.reference)
            logits_NV, state_SD = response_logits_and_states(models.reference, layout, head)
            return logits_NV, models.reward.scores(state_SD[layout.end_E])
        logits_NV = response_logits(models.reference, layout)
    if isinstance(models.reward, SequenceClassifier):
        return logits_NV, None
    compute = models.numerics.autocast(models.reward)
    with compute, models.lower.cached(models.reward, layout):
        return logits_NV, response_scores(models.reward, layout)


def reference_logprobs_and_scores(
    models: Models, layout: Layout, token_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """logprob_N of the reference, in chunks of many tokens; scores as `reference_and_scores`."""
    if not models.in_chunks(len(token_N)):
        logits_NV, score_E = reference_and_scores(models, layout)
        return losses.chosen_logprobs(logits_NV, token_N, temperature), score_E
    with models.lower.cached(models.reference, layout):
        reference_N, _, state_SD = _in_chunks(
            models, models.reference, models.reference, layout, token_N, temperature
        )
    if isinstance(models.reward, SequenceClassifier):
        return reference_N, None
    if models.joint:
        return reference_N, models.reward.scores(state_SD[layout.end_E])
    with models.lower.cached(models.reward, layout):
        return reference_N, response_scores(models.reward, layout)


def text_scores(models: Models, episodes: Episodes) -> Tensor:
    """score_B by a reward model with a tokenizer of its own, from the texts of the episodes."""
    assert isinstance(models.reward, SequenceClassifier)
    prompts = [models.prompts[tuple(ids)] for ids in episodes.prompts()]
    responses = [response_text(models.tokenizer, ids) for ids in episodes.responses()]
    scores = score_texts(models.reward, prompts, responses)
    return torch.tensor(scores, device=episodes.ids_BL.device)


def _in_chunks(
    models: Models,
    own: PreTrainedModel,
    policy: nn.Module,
    layout: Layout,
    token_N: Tensor,
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """logprob_N, entropy_N (else 0) and state_SD; `policy` is `own` or an engine around it."""
    head = unembedding(own)
    summary = partial(
        logprobs_and_entropy,
        token_N=token_N,
        temperature=temperature,
        chunk=models.tokens_at_once or len(token_N),
        with_entropy=with_entropy,
    )
    with in_place_of_logits(head, summary):
        summary_N2, state_SD = response_logits_and_states(policy, layout, head)
    logprob_N, entropy_N = summary_N2.unbind(-1)
    return logprob_N, entropy_N.detach(), state_SD


def response_logits(policy: nn.Module, layout: Layout) -> Tensor:
    """logits_NV that predict the response tokens, episode after episode.

    `policy` is a causal language model, or an engine around one.
    """
    if isinstance(layout.mask, PackedSegments):
        logits_1NV: Tensor = _policy_output(policy, layout, layout.predict_N).logits
        return logits_1NV[0]
    logits_BLV: Tensor = _policy_output(policy, layout, layout.columns).logits
    logits_BLV = logits_BLV[:, -layout.columns :]  # of a model that ignores `logits_to_keep`
    return logits_BLV.flatten(0, 1).index_select(0, layout.predict_N)


def response_logits_and_states(
    policy: nn.Module, layout: Layout, head: nn.Module
) -> tuple[Tensor, Tensor]:
    """`response_logits`, and the states state_SD of the last columns that they come from.

    `head` is the policy's unembedding, also where `policy` is an engine. It gets the states before
    response tokens alone, so no logits are computed for padding.
    """
    states: list[Tensor] = []

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        states.append(inputs[0][:, -layout.columns :].flatten(0, 1))
        return (states[0].index_select(0, layout.predict_N)[None],)

    handle = head.register_forward_pre_hook(select)
    try:
        output = _policy_output(policy, layout, layout.columns)
    finally:
        handle.remove()
    logits_1NV: Tensor = output.logits
    return logits_1NV[0], states[0]


def response_values(critic: nn.Module, layout: Layout) -> Tensor:
    """value_N before each response token, at the position that predicts it."""
    return _head_outputs(critic, layout).index_select(0, layout.predict_N)


def response_scores(reward: nn.Module, layout: Layout) -> Tensor:
    """score_E at the last token of each response; `reward` is a RewardModel."""
    return _head_outputs(reward, layout).index_select(0, layout.end_E)


def pretraining_nll(models: Models, policy: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of pretraining examples, padded on the right.

    `policy` is the models' own or an engine around it.
    """
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    inputs = {"input_ids": ids_BL, "position_ids": position_BL, "use_cache": False}
    with models.numerics.autocast(models.policy):
        if not models.in_chunks(ids_BL.numel()):
            return losses.token_nll(policy(**inputs).logits, ids_BL, mask_BL)
        label_BL = ids_BL.masked_fill(~mask_BL, IGNORED)
        chunk = models.tokens_at_once or ids_BL.numel()
        loss = partial(summed_nll, label_BL=label_BL, chunk=chunk)
        with in_place_of_logits(unembedding(models.policy), loss):
            nats: Tensor = policy(**inputs).logits
    return nats


def _policy_output(policy: nn.Module, layout: Layout, keep: int | Tensor) -> Any:
    """The output, with the logits of the `keep` last columns, or of the columns `keep`."""
    mask = layout.mask
    inputs = (
        mask.as_inputs() if isinstance(mask, PackedSegments) else {"attention_mask": mask.long()}
    )
    return policy(
        input_ids=layout.ids_BL,
        position_ids=layout.positions_BL,
        use_cache=False,
        logits_to_keep=keep,
        **inputs,
    )


def _head_outputs(model: nn.Module, layout: Layout) -> Tensor:
    """The output of a RewardModel in the last columns of all rows."""
    length = layout.ids_BL.shape[1]
    column_L = torch.arange(length - layout.columns, length, device=layout.ids_BL.device)
    column_BL = column_L.expand(len(layout.ids_BL), -1)
    output_BL: Tensor = model(layout.ids_BL, layout.mask, layout.positions_BL, column_BL)
    return output_BL.flatten()
