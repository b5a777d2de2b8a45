"""The gradients of one update against a slow loop over unpadded sequences in float64."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.data.streams import PretrainingStream
from stages.ppo.health import MetricSums
from stages.ppo.ppo import add_ppo_gradients, add_pretraining_gradients
from stages.ppo.rollout import Experience
from stages.ppo.run import PPORun
from tests.stages.ppo.frozen_batch import frozen_batch
from tests.stages.ppo.tiny_ppo import texts_file, tiny_config, tiny_run, tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def slow_gradients(
    run: PPORun, prompts: list[list[int]], responses: list[list[int]], data: Experience
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Equation by equation, one token at a time, in float64."""
    policy = copy.deepcopy(run.models.policy).double()
    critic = copy.deepcopy(run.models.critic).double()
    count, loss = sum(map(len, responses)), torch.zeros((), dtype=torch.float64)
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids_BL = torch.tensor([prompt + response])
        logprob_LV = policy(ids_BL).logits[0].log_softmax(-1)
        hidden_LD = critic.backbone(ids_BL).last_hidden_state[0]
        value_L = hidden_LD @ critic.head.weight[0] + critic.bias
        first = data.episodes.response_BT.shape[1] - len(response)
        for t, token in enumerate(response):
            column, read = first + t, len(prompt) + t - 1
            old, advantage = data.old_BT[b, column].double(), data.advantage_BT[b, column].double()
            ratio = (logprob_LV[read, token] - old).exp()
            loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            target, before = data.return_BT[b, column].double(), data.value_BT[b, column].double()
            near = before + (value_L[read] - before).clamp(-0.2, 0.2)
            errors = torch.stack([(value_L[read] - target) ** 2, (near - target) ** 2])
            loss = loss + 0.5 * errors.max()
    (loss / count).backward()
    return (
        {name: p.grad for name, p in policy.named_parameters() if p.grad is not None},
        {name: p.grad for name, p in critic.named_parameters() if p.grad is not None},
    )


def assert_close(parameters: dict[str, torch.nn.Parameter], expected: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            grad.double(), expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("micro_batch_size", ["auto", 1, 3])
def test_ppo_gradients_equal_a_slow_loop_whatever_the_micro_batch(
    world: tuple[Path, Path], micro_batch_size: int | str
) -> None:
    run = tiny_run(world, tiny_config(micro_batch_size=micro_batch_size))
    prompts, responses, data = frozen_batch()
    expected_policy, expected_critic = slow_gradients(run, prompts, responses, data)
    add_ppo_gradients(run, data, torch.tensor([2, 0, 3, 1]), MetricSums(), first=False)
    assert_close(run.policy.parameters, expected_policy)
    assert_close(run.critic.parameters, expected_critic)


@pytest.mark.parametrize("normaliser", ["token", "sequence"])
def test_pretraining_gradients_are_added_with_their_coefficient_and_divisor(
    world: tuple[Path, Path], normaliser: str
) -> None:
    mix = {
        "coefficient": 3.0,
        "examples_per_episode": 2.0,
        "tokens_per_example": 8,
        "normaliser": normaliser,
    }
    run = tiny_run(world, tiny_config(pretraining=mix, micro_batch_size=3))
    path, tokenizer = texts_file(world[0].parent), run.models.tokenizer
    blocks, same = (PretrainingStream(path, tokenizer, 8, pack=True, seed=0) for _ in range(2))
    prompts, responses, data = frozen_batch()
    expected, _ = slow_gradients(run, prompts, responses, data)
    policy = copy.deepcopy(run.models.policy).double()
    ids_BL, _ = same.next(8)  # two examples for each of the minibatch's four episodes
    logprob_BLV = policy(ids_BL).logits[:, :-1].log_softmax(-1)
    nll = -logprob_BLV.gather(-1, ids_BL[:, 1:, None]).sum()
    (3.0 * nll / (8 * 7 if normaliser == "token" else 8)).backward()
    add_ppo_gradients(run, data, torch.arange(4), MetricSums(), first=False)
    sums = MetricSums()
    run.stream = blocks
    add_pretraining_gradients(run, sums, measure=True)
    added = {name: p.grad for name, p in policy.named_parameters()}
    assert_close(run.policy.parameters, {name: expected[name] + added[name] for name in added})
    metrics = sums.averages(lambda x: x)
    assert metrics["ppo/pretraining_loss_nats_per_token"] == pytest.approx(
        nll.item() / 56, rel=1e-5
    )
    ratio = torch.stack([g.norm() for g in added.values()]).norm() / (
        torch.stack([g.norm() for g in expected.values()]).norm()
    )
    assert metrics["ppo/pretraining_gradient_ratio"] == pytest.approx(ratio.item(), rel=1e-3)
