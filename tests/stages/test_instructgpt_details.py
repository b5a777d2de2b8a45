"""Details of the paper and of its re-implementations that no other test holds, by their number.

docs/instructgpt.md lists all 25 with the test of each; tests/pipeline/test_instructgpt_docs.py
checks that list.
"""

import math
from pathlib import Path

import pytest
import torch

from reward_models.model import RewardModel
from stages.generation.generate import generate_responses
from stages.models import load_policy, load_tokenizer
from stages.ppo import losses
from stages.ppo.config import PPOConfig
from stages.ppo.health import MetricSums, preflight
from stages.ppo.ppo import add_ppo_gradients, experience, update
from stages.ppo.rollout import Experience
from stages.ppo.run import PPORun
from stages.seeding import generator_for
from stages.sft.config import SFTConfig
from stages.sft.train import _arguments as sft_arguments
from tests.stages.ppo.tiny_ppo import (
    outputs,
    roll_out,
    tiny_config,
    tiny_models,
    tiny_run,
    tiny_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def rolled_out(
    run: PPORun, prompts: list[list[int]], kl: float = 0.02
) -> tuple[Experience, torch.Tensor]:
    """Experience and rewards of one rollout of the run's policy."""
    config = run.config
    episodes = roll_out(run.models, prompts, config.sampling, generator_for(0, "details"))
    read = outputs(run.models, episodes, temperature=config.sampling.temperature)
    return experience(read, config, kl)


PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [5]] * 2


def test_detail_01_reward_and_value_depend_on_the_query_and_the_response(world: tuple[Path, Path]):
    """Another prompt before the same response is another score and other values."""
    model = RewardModel.load(world[1])
    ids_BL = torch.tensor([[3, 4, 9, 10], [5, 6, 9, 10]])
    mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    places_BL = torch.arange(4).expand(2, -1)
    score_B = model(ids_BL, mask_BL, places_BL)
    value_BL = model.values(ids_BL, mask_BL, places_BL)
    assert value_BL.shape == (2, 4)
    assert not torch.isclose(score_B[0], score_B[1])
    assert not torch.isclose(value_BL[0, 2:], value_BL[1, 2:]).any()


def test_detail_04_every_token_of_a_response_follows_the_trained_distribution(
    world: tuple[Path, Path],
) -> None:
    """Not the first alone: after a given first token, the second has the model's frequencies."""
    policy, tokenizer = load_policy(world[0]), load_tokenizer(world[0])
    with torch.no_grad():  # far from uniform, so that another distribution would show
        policy.get_output_embeddings().get_parameter("weight").mul_(20.0)
    sampling = tiny_config(sampling={"max_new_tokens": 2, "batch_size": 5000}).sampling
    drawn = generate_responses(
        policy, tokenizer, [[3, 4]] * 30_000, sampling, generator=generator_for(0, "second")
    )
    firsts = [one.ids[0] for one in drawn if len(one.ids) == 2]
    common = max(set(firsts), key=firsts.count)
    seconds = [one.ids[1] for one in drawn if len(one.ids) == 2 and one.ids[0] == common]
    with torch.no_grad():
        expected_V = policy(torch.tensor([[3, 4, common]])).logits[0, -1].softmax(-1)
    count_V = torch.bincount(torch.tensor(seconds), minlength=len(expected_V)).double()
    expected_V = expected_V.double() * len(seconds)
    chi_squared = float(((count_V - expected_V).square() / expected_V).sum())
    degrees = len(expected_V) - 1
    assert chi_squared < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("changes", [{"top_p": 0.9}, {"temperature": 0.0}])
def test_detail_04_sampling_that_is_not_trained_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="PPO must sample what it trains"):
        PPOConfig.model_validate({"sampling": changes})


def test_detail_06_ranks_draw_different_responses() -> None:
    drawn = [torch.rand(4, generator=generator_for(7, "rollout", 0, rank)) for rank in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_detail_07_a_prompt_too_long_is_refused_never_cut(world: tuple[Path, Path]) -> None:
    config = tiny_config()
    models = tiny_models(world, config)
    fits = 64 - config.sampling.max_new_tokens
    preflight(models, config, [[3] * fits])
    with pytest.raises(ValueError, match="the policy has 64 positions"):
        preflight(models, config, [[3] * (fits + 1)])


def test_detail_08_rollout_and_update_have_the_same_log_probabilities(world: tuple[Path, Path]):
    """Dropout is off in both, whatever mode the modules are in: the first ratio is 1."""
    run = tiny_run(world, tiny_config())
    data, _ = rolled_out(run, PROMPTS)
    sums = MetricSums()
    add_ppo_gradients(run, data, torch.arange(4), sums, first=True)
    assert sums.averages(run.sum_over_ranks)["ppo/first_ratio_error"] <= 1e-5


def test_detail_09_adam_s_epsilon_is_that_of_the_code_behind_each_stage(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    optimizer = tiny_run(world, tiny_config()).policy.optimizer
    assert {group["eps"] for group in optimizer.param_groups} == {1e-5}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    chosen = sft_arguments(SFTConfig(micro_batch_size=1), tmp_path, 0, validated=False)
    assert (chosen.adam_beta1, chosen.adam_beta2, chosen.adam_epsilon) == (0.9, 0.95, 1e-8)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_detail_13_policy_and_reference_both_have_the_temperature(
    world: tuple[Path, Path], temperature: float
) -> None:
    run = tiny_run(world, tiny_config(sampling={"temperature": temperature}))
    with torch.no_grad():  # a reference of its own
        run.models.reference.get_input_embeddings().get_parameter("weight").mul_(1.5)
    sampling = run.config.sampling
    episodes = roll_out(run.models, PROMPTS, sampling, generator_for(0, "details"))
    read = outputs(run.models, episodes, temperature=temperature)
    row, mask_T = 2, episodes.response_BT[2]
    ids_L = episodes.ids_BL[row, episodes.mask_BL[row]]
    output = int(mask_T.sum())
    for model, found_BT in (
        (run.models.policy, read.old_BT),
        (run.models.reference, read.reference_BT),
    ):
        with torch.no_grad():
            log_p_LV = (model(ids_L[None]).logits[0] / temperature).log_softmax(-1)
        slow_T = log_p_LV[-output - 1 : -1].gather(-1, ids_L[-output:, None]).squeeze(-1)
        assert torch.allclose(found_BT[row][mask_T], slow_T, atol=1e-5)


@pytest.mark.parametrize(
    ("inner_epochs", "minibatch", "steps"), [(1, 1, 8), (4, 8, 4)], ids=["paper", "ziegler"]
)
def test_detail_16_inner_epochs_and_minibatches_are_settings(
    world: tuple[Path, Path], inner_epochs: int, minibatch: int, steps: int
) -> None:
    """One epoch of eight minibatches, as in the paper, or four of one, as in Ziegler et al."""
    config = tiny_config(inner_epochs=inner_epochs, minibatch=minibatch, micro_batch_size=1)
    run = tiny_run(world, config)
    data, _ = rolled_out(run, PROMPTS)
    update(run, data, 0, MetricSums())
    [first, *_] = run.policy.parameters.values()
    assert int(run.policy.optimizer.state[first]["step"]) == steps


def test_detail_17_the_score_is_earned_by_the_last_token_alone(world: tuple[Path, Path]) -> None:
    """Policy and reference are equal at first, so all there is to earn is the score."""
    run = tiny_run(world, tiny_config())
    data, reward_BT = rolled_out(run, PROMPTS, kl=5.0)
    assert (reward_BT[:, :-1] == 0).all()
    assert (reward_BT[:, -1] != 0).any()
    assert data.episodes.response_BT[:, -1].all()


def test_detail_18_advantages_are_whitened_over_the_whole_rollout_not_a_micro_batch(
    world: tuple[Path, Path],
) -> None:
    run = tiny_run(world, tiny_config())
    data, _ = rolled_out(run, PROMPTS)
    mask_BT = data.episodes.response_BT
    valid_N = data.advantage_BT[mask_BT].double()
    assert valid_N.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert valid_N.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    part_N = data.advantage_BT[:2][mask_BT[:2]].double()
    assert abs(part_N.mean().item()) > 1e-3  # a part of it keeps a mean of its own


@pytest.mark.parametrize("whiten", [True, False])
def test_detail_18_returns_are_not_whitened(world: tuple[Path, Path], whiten: bool) -> None:
    run = tiny_run(world, tiny_config(whiten_advantages=whiten))
    data, reward_BT = rolled_out(run, PROMPTS)
    plain_BT = losses.advantages(
        reward_BT, data.value_BT, data.episodes.response_BT, gamma=1.0, lam=0.95
    )
    assert torch.allclose(data.return_BT, plain_BT + data.value_BT, atol=1e-6)


def test_detail_23_the_value_after_the_last_token_is_zero() -> None:
    """Score at the last generated token: its residual is score - value, whatever stands beyond."""
    value_BT = torch.tensor([[1.0, 2.0, 99.0]])
    mask_BT = torch.tensor([[True, True, False]])
    reward_BT = torch.tensor([[0.0, 5.0, 0.0]])
    advantage_BT = losses.advantages(reward_BT, value_BT, mask_BT, gamma=1.0, lam=0.95)
    assert advantage_BT[0, 1].item() == pytest.approx(5.0 - 2.0)
    assert advantage_BT[0, 0].item() == pytest.approx((2.0 - 1.0) + 0.95 * 3.0)
    assert advantage_BT[0, 2].item() == 0.0
