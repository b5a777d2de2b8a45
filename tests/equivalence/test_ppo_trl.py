"""Stage three beside TRL 1.12.0's PPO trainer, on numbers that its own loop computed.

`trl_ppo_reference.py` recorded them. On responses of full length everything agrees; where responses
end early, TRL and this project define three things differently, and each difference is shown here
by making it.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reward_models.model import RewardModel
from reward_models.model_card import RewardCard
from stages.generation.generate import Sampled
from stages.ppo import losses
from stages.ppo.models import Models
from stages.ppo.rollout import Episodes, Rollout
from tests.equivalence.trl_ppo_models import (
    END,
    KINDS,
    PAD,
    PROMPTS,
    RESPONSE,
    SETTINGS,
    classifier,
    language_model,
)
from tests.reward_models.tiny import tiny_tokenizer
from tests.stages.ppo.tiny_ppo import outputs

RECORDED = json.loads(Path(__file__).with_name("trl_ppo_reference.json").read_text())
TOLERANCE = 1e-6  # the models are float64; each side takes its log-softmax and its sums in float32
each_kind = pytest.mark.parametrize("kind", KINDS)


def recorded(case: str, name: str) -> Tensor:
    """A recorded table; masks as bool."""
    return torch.tensor(RECORDED[case][name])


def scorer(kind: str, seed: int) -> RewardModel:
    """TRL's classifier as a reward model: the same trunk and head."""
    whole = classifier(kind, seed)
    model = RewardModel(whole.base_model, RewardCard(base="", base_hash=""))
    with torch.no_grad():
        model.head.weight.copy_(whole.score.weight)
    return model.eval()


def read(kind: str, case: str) -> Rollout:
    """The recorded episodes as this project reads them."""
    responses = [_without_pads(row) for row in RECORDED[case]["postprocessed_responses"]]
    episodes = Episodes.build(_prompts(case), responses, torch.device("cpu"))
    policy, reference = language_model(kind, 1), language_model(kind, 2)
    models = Models(tiny_tokenizer(), policy, reference, scorer(kind, 3), scorer(kind, 4))
    return outputs(models, episodes)


def _prompts(case: str) -> list[list[int]]:
    """In the order in which TRL's data loader took them."""
    start = RECORDED[case]["context_length"]
    rows = [row[:start] for row in RECORDED[case]["query_responses"]]
    aligned = [[token for token in row if token != PAD] for row in rows]
    assert sorted(aligned) == sorted(PROMPTS)
    return aligned


def _without_pads(response: list[int]) -> Sampled:
    ids = [token for token in response if token != PAD]
    return Sampled(ids, ended=ids[-1] == END)


def left_aligned(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """TRL's tables begin with the response, ours end with it; 0 where there is none."""
    aligned = torch.zeros(len(x_BT), RESPONSE)
    for row, (values, mask) in enumerate(zip(x_BT, mask_BT, strict=True)):
        aligned[row, : int(mask.sum())] = values[mask]
    return aligned


def equal(ours: Tensor, others: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, others, atol=tolerance, rtol=tolerance)


def generalised_advantages(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return losses.advantages(
        reward_BT, value_BT, mask_BT, gamma=SETTINGS["gamma"], lam=SETTINGS["lam"]
    )


@each_kind
@pytest.mark.parametrize("lengths", ["full length", "ending"])
def test_log_probabilities_values_kl_and_scores_agree(kind: str, lengths: str):
    case = f"{kind}, {lengths}"
    rollout = read(kind, case)
    mask_BT = rollout.episodes.response_BT
    real_BT = ~recorded(case, "padding_mask")
    for ours_BT, name in (
        (rollout.old_BT, "logprobs"),
        (rollout.reference_BT, "ref_logprobs"),
        (rollout.value_BT, "values"),
        (losses.kl_k1(rollout.old_BT, rollout.reference_BT), "kl"),
    ):
        equal(left_aligned(ours_BT, mask_BT), recorded(case, name) * real_BT)
    equal(rollout.score_B, recorded(case, "scores"))


@each_kind
def test_rewards_returns_and_advantages_agree_on_responses_of_full_length(kind: str):
    case = f"{kind}, full length"
    rollout = read(kind, case)
    mask_BT = rollout.episodes.response_BT
    reward_BT = losses.shaped_rewards(
        rollout.score_B, rollout.old_BT, rollout.reference_BT, mask_BT, SETTINGS["kl_coef"]
    )
    equal(reward_BT, recorded(case, "rewards"))
    advantage_BT = generalised_advantages(reward_BT, rollout.value_BT, mask_BT)
    equal(advantage_BT + rollout.value_BT, recorded(case, "returns"))
    whitened_BT = losses.whiten(advantage_BT, mask_BT)
    # TRL divides the variance by n - 1; this project, as Ziegler et al.'s code does, by n.
    count = int(mask_BT.sum())
    ours_BT = whitened_BT * ((count - 1) / count) ** 0.5
    # Divided by a deviation of about a third, so rounding is three times as large.
    equal(ours_BT, recorded(case, "advantages"), 3 * TOLERANCE)


@each_kind
@pytest.mark.parametrize("lengths", ["full length", "ending"])
def test_the_policy_loss_agrees_after_an_update(kind: str, lengths: str):
    case = f"{kind}, {lengths}"
    real_BT = ~recorded(case, "padding_mask")
    new_N, old_N, advantage_N = (
        recorded(case, name)[real_BT] for name in ("second_logprobs", "logprobs", "advantages")
    )
    assert losses.policy_clipped(new_N, old_N, advantage_N, SETTINGS["cliprange"]).any()
    loss = losses.policy_loss(
        new_N, old_N, advantage_N, clip=SETTINGS["cliprange"], count=len(new_N)
    )
    equal(loss, recorded(case, "pg_loss_stats")[1, 0, 0])


@each_kind
@pytest.mark.parametrize("lengths", ["full length", "ending"])
def test_the_value_loss_agrees_after_an_update(kind: str, lengths: str):
    case = f"{kind}, {lengths}"
    # TRL's mask here has one token more than the response, see the test below.
    kept_BT = ~recorded(case, "padding_mask_p1")
    new_N, old_N, return_N = (
        recorded(case, name)[kept_BT] for name in ("second_values", "values", "returns")
    )
    clip = SETTINGS["cliprange_value"]
    loss = losses.value_loss(new_N, old_N, return_N, clip=clip, count=len(new_N))
    equal(loss, recorded(case, "vf_loss_stats")[1, 0, 0])


@each_kind
def test_a_score_one_token_after_the_end_token_gives_trl_s_rewards_and_returns(kind: str):
    case = f"{kind}, ending"
    rollout = read(kind, case)
    mask_BT = rollout.episodes.response_BT
    ended_B = rollout.episodes.ended_B
    assert ended_B.any()
    assert not ended_B.all()
    # Where a response ends early, TRL pays the score at the pad after it, and has a value there.
    longer_BT = ~recorded(case, "padding_mask_p1")
    penalty_BT = -SETTINGS["kl_coef"] * left_aligned(
        losses.kl_k1(rollout.old_BT, rollout.reference_BT), mask_BT
    )
    last_BT = longer_BT & ~torch.nn.functional.pad(longer_BT[:, 1:], (0, 1))
    theirs_BT = recorded(case, "rewards") * longer_BT
    # At that pad TRL's KL term is that of two equal fillers, hence 0.
    equal(penalty_BT + rollout.score_B[:, None] * last_BT, theirs_BT)
    advantage_BT = generalised_advantages(theirs_BT, recorded(case, "values"), longer_BT)
    equal(advantage_BT + recorded(case, "values"), recorded(case, "returns") * longer_BT)
    # Ours pays at the end token itself, so no token outside the response takes part.
    ours_BT = losses.shaped_rewards(
        rollout.score_B, rollout.old_BT, rollout.reference_BT, mask_BT, SETTINGS["kl_coef"]
    )
    aligned_BT = left_aligned(ours_BT, mask_BT)
    assert not torch.allclose(aligned_BT, theirs_BT, atol=1e-3)
    equal(aligned_BT.sum(1), theirs_BT.sum(1))
