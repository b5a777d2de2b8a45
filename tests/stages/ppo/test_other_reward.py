"""A reward model of another family and tokenizer drives PPO: by text, with a critic of its own."""

import logging
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from reward_models.model import RewardModel
from stages.data.template import conversation_ids, response_text
from stages.generation.classifier import SequenceClassifier
from stages.generation.score import load_scorer, score_texts
from stages.ppo.models import Models, ValueHead
from tests.reward_models.tiny import tiny_base
from tests.stages.classifiers import bert_classifier, gpt2_classifier
from tests.stages.ppo.tiny_ppo import (
    FAMILIES,
    PROMPTS,
    metrics_of,
    outputs,
    roll_out,
    tiny_config,
    tiny_models,
    train,
)

World = tuple[Path, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return tiny_base(folder / "sft"), gpt2_classifier(folder / "reward", initializer_range=0.5)


def with_prompts(models: Models) -> Models:
    ids = [tuple(conversation_ids(models.tokenizer, prompt)) for prompt in PROMPTS]
    return replace(models, prompts=dict(zip(ids, PROMPTS, strict=True)))


def test_a_rollout_has_the_scores_that_the_texts_have_alone(world: World) -> None:
    config = tiny_config(responses_per_prompt=2)
    models = with_prompts(tiny_models(world, config))
    ids = [list(key) for key in models.prompts for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    episodes = roll_out(models, ids, config.sampling, generator, sharing=2)
    texts = [response_text(models.tokenizer, response) for response in episodes.responses()]
    alone = load_scorer(world[1])
    assert isinstance(alone, SequenceClassifier)
    expected = score_texts(alone, [p for p in PROMPTS for _ in range(2)], texts, batch_size=1)
    for packed in (False, True):
        rollout = outputs(replace(models, packed=packed), episodes)
        assert rollout.score_B.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 5


@pytest.mark.parametrize("family", ["full", "top_layers", "lora", "prefix", "probe"])
def test_the_critic_is_the_policy_with_a_head_of_zeros(world: World, family: str) -> None:
    models = tiny_models(world, tiny_config(adaptation=FAMILIES[family]))
    critic = models.critic
    assert isinstance(critic, RewardModel)
    ids_BL = torch.tensor([[5, 6, 7, 8]])
    mask_BL, positions_BL = torch.ones_like(ids_BL).bool(), torch.arange(4)[None]
    assert torch.equal(critic.values(ids_BL, mask_BL, positions_BL), torch.zeros(1, 4))
    state_BLD = critic.states(ids_BL, mask_BL, positions_BL, positions_BL)
    output = models.policy(input_ids=ids_BL, output_hidden_states=True)
    assert torch.allclose(state_BLD, output.hidden_states[-1], atol=1e-6)
    own = {id(p) for p in critic.parameters() if p.requires_grad}
    assert critic.head.weight.requires_grad
    assert critic.bias.requires_grad
    assert own.isdisjoint(id(p) for p in models.policy.parameters())
    shared = {id(p) for p in models.policy.parameters() if not p.requires_grad}
    assert shared.issuperset(id(p) for p in critic.parameters() if not p.requires_grad)


def test_a_run_raises_the_score_and_its_critic_learns(world: World, tmp_path: Path) -> None:
    config = tiny_config(
        episodes=192,
        episodes_per_rollout=32,
        minibatch=16,
        micro_batch_size=16,
        learning_rate=5e-3,
        critic_learning_rate=1e-2,
        inner_epochs=2,
        kl={"kind": "fixed", "coefficient": 0.0},
        ema_decay=None,
    )
    rows = metrics_of(world, tmp_path / "run", config)
    assert rows[0]["ppo/first_ratio_error"] == 0.0
    assert rows[0]["ppo/kl_nats"] == 0.0
    scores = [row["ppo/score"] for row in rows]
    assert fmean(scores[2:]) > scores[0] + 0.1
    assert rows[0]["ppo/value_mean"] == 0.0
    assert rows[-1]["ppo/value_mean"] > 0.1  # as the scores are
    critic = RewardModel.load(tmp_path / "run/critic")
    assert critic.head.weight.abs().max() > 0


def test_an_interrupted_run_ends_as_an_unbroken_one(world: World, tmp_path: Path) -> None:
    config = tiny_config(
        episodes=16, checkpoint_every=1, adaptation=FAMILIES["lora"], validation={"every": 2}
    )
    train(world, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "broken", config, interrupt_at(2))
    train(world, tmp_path / "broken", config)
    for part in ("model/adapter_model.safetensors", "critic/adapter_model.safetensors"):
        whole, broken = (load_file(tmp_path / run / part) for run in ("whole", "broken"))
        assert all(torch.equal(whole[name], broken[name]) for name in whole)


def interrupt_at(iteration: int):  # type: ignore[no-untyped-def]
    def report(step) -> None:  # type: ignore[no-untyped-def]
        if step.done == iteration and step.metrics:
            raise KeyboardInterrupt

    return report


def test_a_value_head_needs_no_backbone_and_an_encoder_scores_pairs(
    world: World, tmp_path: Path
) -> None:
    encoder = bert_classifier(tmp_path / "bert")
    config = tiny_config(episodes=16, models={"kind": "shared-critic"})
    models = tiny_models((world[0], encoder), config)
    assert isinstance(models.critic, ValueHead)
    rows = metrics_of((world[0], encoder), tmp_path / "run", config)
    assert len({row["ppo/score"] for row in rows}) == 2


def test_a_joint_pass_and_prompts_without_room_are_refused(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"models\.kind is joint, but the reward model"):
        tiny_models(world, tiny_config(models={"kind": "joint"}))
    small = gpt2_classifier(tmp_path / "small", n_positions=24)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=r"the longest prompt .* has 24 positions; shorten"),
    ):
        train((world[0], small), tmp_path / "run", tiny_config())
