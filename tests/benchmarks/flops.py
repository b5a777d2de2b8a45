"""The arithmetic that a step cannot do without, for the distance to what a machine can.

Counted are matrix products over real tokens: 2 FLOPs a weight and token forward, twice that
backward; attention's products; the head only where a token is predicted. Padding, recomputation
and anything a step might do in addition are not useful and not counted.
"""

from tests.benchmarks.cases import Case, Shape
from tests.benchmarks.reward.case import RewardCase
from tests.benchmarks.sampling.case import SamplingCase


def backbone(shape: Shape) -> int:
    """Weights of all layers that multiply a token."""
    kv = shape.hidden // shape.heads * shape.kv_heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * kv
    return shape.layers * (attention + 3 * shape.hidden * shape.inner)


def forward(shape: Shape, tokens: float, seen: float, predicted: float) -> float:
    """One pass over `tokens`, each of which attends to `seen`; the head for `predicted`."""
    attention = 4 * shape.hidden * shape.layers * seen * tokens
    head = 2 * shape.hidden * shape.vocabulary * predicted
    return 2 * backbone(shape) * tokens + attention + head


def ppo_flops(case: Case, response_tokens: float) -> float:
    """A step: rollout, reference and reward once; training of policy and critic.

    Old probabilities and values come with the first training pass, of the episodes in the first
    minibatch; those of the others must be read before that moves anything. A frozen trunk under
    LoRA saves the gradients of its weights, a third of the policy's training. Joint passes leave
    rollout, reference and the policy's training.
    """
    prompt = (case.shortest_prompt + case.longest_prompt) / 2
    length = prompt + response_tokens
    whole = (case.shape, case.episodes * length, length / 2)
    response_total = case.episodes * response_tokens
    with_head, without = forward(*whole, response_total), forward(*whole, 0.0)
    later = 1 - case.minibatch / case.episodes
    once = 2 * with_head + without  # rollout, reference; reward
    if case.top_layers is not None:
        # The layers below are computed once a rollout; twice as much goes back through those above.
        share = case.top_layers / case.shape.layers
        head = with_head - without
        once = with_head + head + 2 * share * without  # rollout; reference, reward above
        once += later * (head + 2 * share * without)
        return once + case.inner_epochs * (2 * head + 6 * share * without)
    policy = (3 if case.lora_rank is None else 2) * with_head
    if case.models == "joint":  # reward and value are heads on the passes of reference and policy
        return (2 + later) * with_head + case.inner_epochs * policy
    once += later * (with_head + without)
    return once + case.inner_epochs * (policy + 3 * without)


def update_flops(case: Case, response_tokens: float) -> float:
    """The part of `ppo_flops` that an update does which reads its episodes anew, in one epoch."""
    length = (case.shortest_prompt + case.longest_prompt) / 2 + response_tokens
    whole = (case.shape, case.episodes * length, length / 2)
    with_head = forward(*whole, case.episodes * response_tokens)
    policy = (3 if case.lora_rank is None else 2) * with_head
    return policy if case.models == "joint" else policy + 3 * forward(*whole, 0.0)


def reward_flops(case: RewardCase) -> float:
    """Forward and backward, the prompt computed once for its K responses."""
    tokens = case.prompt + case.responses * case.response
    seen = case.prompt**2 / 2 + case.responses * case.response * (case.prompt + case.response / 2)
    return 3 * forward(case.shape, tokens, seen / tokens, 0.0)


def sampling_flops(case: SamplingCase, response_tokens: float) -> float:
    """Prompts once, then token by token."""
    response_total = case.prompts * case.responses * response_tokens
    tokens = case.prompts * case.prompt + response_total
    return forward(case.shape, tokens, case.prompt / 2 + response_tokens / 2, response_total)
