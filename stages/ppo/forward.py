"""Forward passes of the four models over episodes: the plain ones, and those that are quicker.

    plain    a left-padded row for each episode, four models with a forward pass each
    packed   all episodes in one row without padding (`reward_models.packed_attention`), where those
             that share a prompt are branches of it: it is computed once
    shared   models.kind shared-critic: policy + value head | reference | reward model
             models.kind joint: policy + value head | reference + the reward model's head
    cached   the states below the lowest trained layer, computed once a rollout
             (`stages.adapters.cached_layers`); the graphs of the rollout's own forward passes, for
             the first minibatch (`evaluate`)

All give the same numbers, up to rounding. Rows are padded on the right for models that padding
before a text would change.

Dimension key:  E episodes,  B rows,  L tokens of a row,  N response tokens of all episodes in one
list,  S last columns of all rows in one list,  V vocabulary,  D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reward_models.model import RewardModel
from reward_models.packed_attention import PackedSegments, segment_table
from stages.data.padding import positions
from stages.data.template import end_id
from stages.distributed.network import Network
from stages.distributed.sharding import autocast
from stages.generation.classifier import SequenceClassifier
from stages.ppo import losses
from stages.ppo.models import Models, ValueHead, unembedding
from stages.ppo.rollout import Episodes, Rollout, by_length, right_aligned, text_scores
from stages.reward.shared_prompt import PackedRow


@dataclass(frozen=True, slots=True)
class Layout:
    """Model inputs, and the positions of the responses in the outputs.

    `predict_N` is the position that predicts each response token and `end_E` that of each episode's
    last token, as row * columns + column, counted in the last `columns` columns of all rows. `mask`
    is mask_BL (true at tokens), or the segments of the only row. `length_B` counts the tokens of
    each row, or, where packed, of each prompt with all its responses.
    """

    ids_BL: Tensor
    mask: Tensor | PackedSegments
    positions_BL: Tensor
    columns: int
    predict_N: Tensor
    end_E: Tensor
    length_B: Tensor
    padded_right: bool = False

    def split(self, x_BL: Tensor) -> list[Tensor]:
        """A tensor with a row and column for each token, cut into the parts of `length_B`."""
        lengths = self.length_B.tolist()
        if isinstance(self.mask, PackedSegments):
            return list(torch.split(x_BL[0], lengths))
        return [x_L[self._tokens(n)] for x_L, n in zip(x_BL, lengths, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`, 0 at padding."""
        if isinstance(self.mask, PackedSegments):
            return torch.cat(list(parts))[None]
        x_BL = parts[0].new_zeros(*self.ids_BL.shape, *parts[0].shape[1:])
        for x_L, part in zip(x_BL, parts, strict=True):
            x_L[self._tokens(len(part))] = part
        return x_BL

    def _tokens(self, count: int) -> slice:
        """The columns of a row's tokens."""
        return slice(count) if self.padded_right else slice(-count, None)


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
    forwards, end = [], end_id(models.tokenizer)
    with torch.no_grad():
        for rows in chain.from_iterable(batches):
            batch = episodes.take(rows)
            token_N = batch.response_tokens()[batch.response_BT]
            layout = lay_out_for(models, batch.ended_with(end))  # that end, for the scores
            with torch.set_grad_enabled(keep_graphs):
                logits_NV, state_ND = policy_logits(models, layout, models.policy)
                old_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
                value_N = values(models, layout, state_ND)
            if keep_graphs:
                separate_N = value_N if state_ND is None else None
                forwards.append(Forward(rows, layout, old_N, state_ND, separate_N))
            entropy_N = losses.entropy(logits_NV, temperature)
            logits_NV, score_E = reference_and_scores(models, layout)
            score_E = text_scores(models, batch) if score_E is None else score_E
            reference_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
            for table_BT, x_N in (
                (rollout.old_BT, old_N),
                (rollout.entropy_BT, entropy_N),
                (rollout.reference_BT, reference_N),
                (rollout.value_BT, value_N),
            ):
                _write(table_BT, rows, batch, x_N)
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
    accelerator: Accelerator,
) -> Iterator[Forward]:
    """The policy's forward passes over `rows`, in micro-batches of at most `size`."""
    for part in by_length(episodes, rows, size):
        batch = episodes.take(part)
        token_N = batch.response_tokens()[batch.response_BT]
        with autocast(accelerator):
            layout = lay_out_for(models, batch)
            logits_NV, state_ND = policy_logits(models, layout, policy.model)
        logprob_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
        del logits_NV
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
    accelerator: Accelerator,
) -> Tensor:
    """Add the gradients of both losses to the two networks; return value_N without its graph.

    A separate critic runs when the policy's graph is gone, so that one graph is in memory at a
    time. A value head's loss moves the policy too, by `value_coefficient`.
    """
    if forward.state_ND is None:
        policy.backward(policy_loss)
        value_N = forward.value_N
        if value_N is None:
            with autocast(accelerator):
                value_N = critic_values(models, forward.layout, critic.model)
    else:
        if value_coefficient:
            # The head may be an engine's and so have its own backward pass, from its own states.
            leaf_ND = forward.state_ND.detach().requires_grad_()
            with autocast(accelerator):
                value_N = models.critic(leaf_ND)  # an engine would count it as its own forward
            (slope_ND,) = torch.autograd.grad(value_loss(value_N), leaf_ND)
            policy_loss = policy_loss + value_coefficient * (forward.state_ND * slope_ND).sum()
        policy.backward(policy_loss)
        with autocast(accelerator):
            value_N = critic.model(forward.state_ND.detach())
    critic.backward(value_loss(value_N))
    return value_N.detach()


def lay_out_for(models: Models, episodes: Episodes) -> Layout:
    """The layout that suits the models."""
    return lay_out(episodes, packed=models.packed, right=models.pads_right)


def lay_out(episodes: Episodes, *, packed: bool = False, right: bool = False) -> Layout:
    """A row for each episode, padded on the left or `right`, or, where `packed`, one for all."""
    if packed:
        return _packed(episodes)
    return _padded(episodes, right=right)


def policy_logits(
    models: Models, layout: Layout, policy: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """logits_NV of the response tokens, and state_ND before them where a value head needs those.

    `policy` is the models' own or an engine around it.
    """
    with models.lower.cached(models.policy, layout):
        if not isinstance(models.critic, ValueHead):
            return response_logits(policy, layout), None
        head = unembedding(models.policy)
        logits_NV, state_SD = response_logits_and_states(policy, layout, head)
        return logits_NV, state_SD[layout.predict_N]


def critic_values(models: Models, layout: Layout, critic: nn.Module) -> Tensor:
    """value_N before the response tokens, by a separate critic or an engine around it."""
    with models.lower.cached(models.critic, layout):
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

    No scores by a reward model with a tokenizer of its own: see `rollout.text_scores`.
    """
    with models.lower.cached(models.reference, layout):
        if models.joint and isinstance(models.reward, RewardModel):
            head = unembedding(models.reference)
            logits_NV, state_SD = response_logits_and_states(models.reference, layout, head)
            return logits_NV, models.reward.scores(state_SD[layout.end_E])
        logits_NV = response_logits(models.reference, layout)
    if isinstance(models.reward, SequenceClassifier):
        return logits_NV, None
    with models.lower.cached(models.reward, layout):
        return logits_NV, response_scores(models.reward, layout)


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


def pretraining_nll(policy: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of pretraining examples, padded on the right."""
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    output = policy(input_ids=ids_BL, position_ids=position_BL, use_cache=False)
    return losses.token_nll(output.logits, ids_BL, mask_BL)


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


def _padded(episodes: Episodes, *, right: bool) -> Layout:
    """A row for each episode. Padded on the right, the logits of all columns are needed."""
    width, longest = episodes.ids_BL.shape[1], episodes.response_BT.shape[1]
    ids_BL, mask_BL, length_B = episodes.ids_BL, episodes.mask_BL, episodes.mask_BL.sum(-1)
    row_B = torch.arange(len(length_B), device=length_B.device)
    columns, shift_B = longest + 1, torch.zeros_like(length_B)
    if right:
        columns, shift_B = width, width - length_B
        column_L = torch.arange(width, device=length_B.device)
        mask_BL = column_L < length_B[:, None]
        source_BL = (column_L + shift_B[:, None]).clamp(max=width - 1)
        ids_BL = ids_BL.gather(1, source_BL).masked_fill(~mask_BL, 0)
    row_N, column_N = episodes.response_BT.nonzero(as_tuple=True)
    last_B = (row_B + 1) * columns - 1 - shift_B
    return Layout(
        ids_BL=ids_BL,
        mask=mask_BL,
        positions_BL=positions(mask_BL),
        columns=columns,
        predict_N=last_B[row_N] - longest + column_N,  # one column before the token's own
        end_E=last_B,
        length_B=length_B,
        padded_right=right,
    )


def _packed(episodes: Episodes) -> Layout:
    row, device = PackedRow(), episodes.ids_BL.device
    predict: list[int] = []
    ends: list[int] = []
    lengths: list[int] = []
    for prompt, responses in _groups(episodes):
        begin = len(row.ids)
        if len(responses) == 1:  # a stem alone: its attention is causal, without a mask
            row.add(prompt + responses[0], ())
            ends.append(len(row.ids) - 1)
        else:
            ends += row.add(prompt, responses)
        for end, response in zip(ends[-len(responses) :], responses, strict=True):
            predict.append(begin + len(prompt) - 1)
            predict += range(end - len(response) + 1, end)
        lengths.append(len(row.ids) - begin)
    return Layout(
        ids_BL=torch.tensor([row.ids], device=device),
        mask=PackedSegments.of(segment_table(row.segments).to(device)),
        positions_BL=torch.tensor([row.positions], device=device),
        columns=len(row.ids),
        predict_N=torch.tensor(predict, device=device),
        end_E=torch.tensor(ends, device=device),
        length_B=torch.tensor(lengths, device=device),
    )


def _groups(episodes: Episodes) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Each prompt with the responses of the neighbouring episodes that share it."""
    rows, responses = episodes.ids_BL.tolist(), episodes.responses()
    lengths = episodes.mask_BL.sum(-1).tolist()
    for start in range(0, len(rows), episodes.sharing):
        texts = rows[start][len(rows[start]) - lengths[start] :]
        group = responses[start : start + episodes.sharing]
        yield texts[: len(texts) - len(group[0])], group


def _write(table_BT: Tensor, rows: Tensor, batch: Episodes, x_N: Tensor) -> None:
    """Write a batch's response tokens into the rollout's right-aligned table."""
    x_BT = torch.zeros_like(batch.response_BT, dtype=table_BT.dtype)
    x_BT[batch.response_BT] = x_N.to(table_BT.dtype)
    table_BT[rows, -x_BT.shape[1] :] = x_BT
