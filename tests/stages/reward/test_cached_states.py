"""A probe's transformer is computed once, and nothing comes out differently for it."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from reward_models.model import RewardModel
from stages.adapters.config import Full, Probe
from stages.progress import silent
from stages.reward.batches import RankedPrompt, ranked_prompts
from stages.reward.config import RewardConfig
from stages.reward.folds import accuracy_over_all_prompts, deal_into_folds
from stages.reward.shared_prompt import (
    STATES,
    CachedStates,
    SharedPrompt,
    cached_layout,
    choose_layout,
)
from stages.reward.train import new_reward_model
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks, tiny_tokenizer

KINDS = [
    Probe(),
    Probe(pooling="mean"),
    Probe(kind="mlp", width=4),
    Probe(kind="mlp", width=4, pooling="mean"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def elements() -> list[RankedPrompt]:
    rng = random.Random(0)
    tasks = tiny_tasks(12, rng)
    rankings = tiny_rankings(tasks, ["ann"], rng)
    return ranked_prompts(tiny_tokenizer(), tasks, rankings, max_tokens=64)[0]


def probe(base: Path, adaptation: Probe) -> RewardModel:
    model = new_reward_model(RewardConfig(adaptation=adaptation), base, 0)
    for parameter in model.parameters():  # an mlp begins as no layer at all
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model


def scores_and_gradients(
    model: RewardModel, layout: SharedPrompt | CachedStates, elements: Sequence[RankedPrompt]
) -> list[Tensor]:
    model.zero_grad()
    reward_BK = layout.scores(model, layout.collate(elements))
    weight_BK = torch.arange(reward_BK.numel()).view(reward_BK.shape).float()
    for row, one in enumerate(elements):
        weight_BK[row, len(one.responses) :] = 0
    torch.autograd.backward((reward_BK * weight_BK).sum())
    moved = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [reward_BK.detach() * (weight_BK > 0), *moved]


@pytest.mark.parametrize("adaptation", KINDS, ids=str)
def test_scores_and_gradients_are_those_of_reading_everything_each_time(
    base: Path, elements: list[RankedPrompt], adaptation: Probe, tmp_path: Path
) -> None:
    model = probe(base, adaptation)
    plain, cached = choose_layout(model, elements), cached_layout(model, elements, tmp_path)
    assert isinstance(cached, CachedStates)
    some, others = elements[:5], elements[3:9]
    cached.scores(model, cached.collate(elements))
    for batch in (some, others, some):
        actual = scores_and_gradients(model, cached, batch)
        expected = scores_and_gradients(model, plain, batch)  # type: ignore[arg-type]
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_transformer_runs_once_and_after_a_restart_not_at_all(
    base: Path, elements: list[RankedPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    states = RewardModel.states

    def counted(self: RewardModel, *inputs: Tensor) -> Tensor:
        tokens.append(int(inputs[0].numel()))
        return states(self, *inputs)

    model = probe(base, Probe())
    layouts = [cached_layout(model, elements, tmp_path)]
    monkeypatch.setattr(RewardModel, "states", counted)
    first = [layouts[0].scores(model, layouts[0].collate(elements)) for _ in range(3)]
    assert sum(tokens) == sum(element.row_tokens for element in elements)
    monkeypatch.undo()
    layouts.append(cached_layout(model, elements, tmp_path))
    monkeypatch.setattr(RewardModel, "states", counted)
    again = layouts[1].scores(model, layouts[1].collate(elements))
    assert sum(tokens) == sum(element.row_tokens for element in elements)
    assert all(torch.equal(again, each) for each in first[1:])


def test_what_other_models_or_prompts_left_is_not_taken_for_one_s_own(
    base: Path, elements: list[RankedPrompt], tmp_path: Path
) -> None:
    def first_score(adaptation: Probe, some: Sequence[RankedPrompt], row: Path) -> Tensor:
        model = probe(base, adaptation)
        layout = cached_layout(model, some, row)
        return layout.scores(model, layout.collate(some))

    first_score(Probe(), elements, tmp_path)
    assert list((tmp_path / STATES).glob("*.safetensors"))
    mean: Literal["mean"] = "mean"
    for adaptation, some in ((Probe(pooling=mean), elements), (Probe(), elements[::-1])):
        result = first_score(adaptation, some, tmp_path)
        torch.testing.assert_close(result, first_score(adaptation, some, tmp_path / "new"))


def test_models_that_are_trained_run_each_time(
    base: Path, elements: list[RankedPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new_reward_model(RewardConfig(adaptation=Full()), base, 0)
    assert cached_layout(whole, elements, tmp_path) == SharedPrompt()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cached_layout(probe(base, Probe()), elements, tmp_path) == SharedPrompt()


def test_every_prompt_is_held_out_once(elements: list[RankedPrompt]) -> None:
    prompts = {one.conversation for one in elements}
    groups = deal_into_folds(prompts, 5, "seed", "prompts")
    assert sorted(prompt for group in groups for prompt in group) == sorted(prompts)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    with pytest.raises(ValueError, match=r"\d+ folds of \d+ prompts; expected 2 to as many"):
        deal_into_folds(prompts, len(prompts) + 1, "seed", "prompts")


@pytest.mark.parametrize(("sense", "low", "high"), [(1, 0.7, 1.0), (0, 0.3, 0.7)])
def test_folds_find_what_can_be_learnt_and_nothing_where_there_is_nothing(
    base: Path, tmp_path: Path, sense: int, low: float, high: float
) -> None:
    rng = random.Random(1)
    tasks = tiny_tasks(120, rng)
    rankings = tiny_rankings(tasks, ["ann"], rng)
    if not sense:  # labels by chance
        rankings = [
            type(one)(one.task, "ann", one.kind, dict(zip(one.ranks, ranks, strict=True)))
            for one in rankings
            if (ranks := rng.sample(list(one.ranks.values()), len(one.ranks)))
        ]
    result = accuracy_over_all_prompts(
        RewardConfig(
            learning_rate=3e-2,
            epochs=15,
            prompts_per_batch=8,
            prompt_folds=4,
            adaptation=Probe(pooling="mean"),
        ),
        ranked_prompts(tiny_tokenizer(), tasks, rankings, max_tokens=2048)[0],
        base=base,
        states=tmp_path,
        work=tmp_path / "work",
        seed=0,
        report=silent,
    )
    assert low < result["pair_accuracy"]["value"] < high
    assert (result["pair_accuracy"]["ci95"][0] > 0.5) == bool(sense)
    pairs = {result[name]["n_pairs"] for name in ("pair_accuracy", "longer_wins")}
    assert pairs == {
        sum(0 < a < b for r in rankings for a in r.ranks.values() for b in r.ranks.values())
    }
