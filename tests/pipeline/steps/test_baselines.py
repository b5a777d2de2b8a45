"""The baselines of the paper: asked behind a prefix, the best of n, tuned on tasks."""

import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.config.baselines import BestOfN, InstructionTuned, PromptedBase
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.experiment import ExperimentConfig
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.suites.suite import Inputs
from pipeline.models.prompting import (
    PromptedPolicy,
    best_of_n_kl,
    choose_prefix,
    generate_answers,
    own_weights,
    prompted_policy,
    prompting_notes,
    shots_ids,
)
from pipeline.steps.evaluate import Evaluate
from pipeline.steps.instructions import task_sets
from pipeline.steps.order import experiment_stages
from reward_models.model import RewardModel
from reward_models.records import Demonstration
from stages.data.template import prompt_ids
from stages.generation.config import SamplingConfig
from stages.generation.score import score_sequences
from stages.models import load_policy, load_tokenizer
from stages.progress import silent
from tests.stages.ppo.tiny_ppo import PROMPTS, tiny_world

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=5, batch_size=16)
SHOTS = [Demonstration(f"w{i} w{i + 1}", "good w2") for i in range(6)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def best_of(world: tuple[Path, Path], n: int) -> PromptedPolicy:
    return PromptedPolicy(str(world[0]), best_of=n, reward_model=str(world[1]))


def scores(world: tuple[Path, Path], prompted: PromptedPolicy) -> list[float]:
    tokenizer, policy = load_tokenizer(world[0]), load_policy(world[0])
    generator = torch.Generator().manual_seed(0)
    answers = generate_answers(prompted, policy, tokenizer, PROMPTS, SAMPLING, generator)
    prompts = [prompt_ids(tokenizer, prompt.prompt) for prompt in PROMPTS]
    sequences = [ids + answer.ids for ids, answer in zip(prompts, answers, strict=True)]
    return score_sequences(RewardModel.load(world[1]), sequences)


def test_more_answers_to_pick_from_score_higher(world: tuple[Path, Path]):
    one, four, sixteen = (sum(scores(world, best_of(world, n))) for n in (1, 4, 16))
    assert one < four < sixteen


def test_kl_of_best_of_n_is_that_of_the_largest_of_n_uniform_numbers():
    # The picked answer's rank u has density n u^(n - 1): KL = integral of n u^(n-1) log(n u^(n-1)).
    n, steps = 5, 100_000
    density = [n * ((i + 0.5) / steps) ** (n - 1) for i in range(steps)]
    assert best_of_n_kl(n) == pytest.approx(sum(d * math.log(d) for d in density) / steps, abs=1e-4)


def test_the_prefix_stands_before_the_prompt_and_not_in_the_row(
    world: tuple[Path, Path], tmp_path: Path
):
    tokenizer = load_tokenizer(world[0])
    ids = shots_ids(tokenizer, [Demonstration("w1 w2", "good")])
    PromptedPolicy(str(world[0]), prefix=ids).write(tmp_path, {})
    assert prompted_policy(tmp_path) == PromptedPolicy(str(world[0]), prefix=ids)
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    rows = generate_completions(
        {"base": world[0], "prompted": tmp_path}, PROMPTS, suite="test", sampling=greedy, seed=0
    )
    plain, behind = rows[: len(PROMPTS)], rows[len(PROMPTS) :]
    assert [row.prompt for row in plain] == [row.prompt for row in behind]
    assert [row.completion for row in plain] != [row.completion for row in behind]


def choose(world: tuple[Path, Path], out: Path, **settings: int) -> None:
    choose_prefix(
        PromptedBase(kind="prompted", **settings),
        base=world[0],
        reward_model=world[1],
        demonstrations=SHOTS,
        prompts=PROMPTS,
        sampling=SAMPLING,
        out=out,
        seed=0,
        report=silent,
    )


def test_the_candidate_with_the_best_mean_score_becomes_the_prefix(
    world: tuple[Path, Path], tmp_path: Path
):
    choose(world, tmp_path, shots=2, candidates=4, prompts=8)
    about = json.loads((tmp_path / "baseline.json").read_text())["about"]
    tried = [one["mean_score"] for one in about["candidates"]]
    assert len(tried) == 4
    assert about["mean_score"] == max(tried) > min(tried)


def test_demonstrations_that_do_not_fit_are_refused(world: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ValueError, match=r"max_prefix_tokens \(3\); the shortest of 8 sets has"):
        choose(world, tmp_path, max_prefix_tokens=3)


def test_only_models_are_asked_for_likelihoods_and_the_kl_is_told(
    world: tuple[Path, Path], tmp_path: Path
):
    best_of(world, 16).write(tmp_path, {})
    judged = {"sft": world[0], "best-of-16": tmp_path}
    assert own_weights(judged) == {"sft": world[0]}
    assert any("1.84 nats" in note for note in prompting_notes(judged))


def test_a_held_out_cluster_is_asked_and_never_learnt_and_all_templates_are_used(tmp_path: Path):
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"t": f"text {i}", "y": "yes"}) + "\n" for i in range(40)))
    task = {"source": str(path), "templates": ["Kind? {t}", "{t} Is it kind?"], "answer": "{y}"}
    chosen = InstructionTuned.model_validate(
        {
            "kind": "instruction_tuned",
            "tasks": [
                {"name": "a", "cluster": "kindness", **task},
                {"name": "b", "cluster": "other", **task},
            ],
            "held_out": ["other"],
            "zero_shot": 10,
        }
    )
    sets = task_sets(chosen, seed=0)
    assert {one.category for one in [*sets.training, *sets.validation]} == {"kindness"}
    assert {one.category for one in sets.held_out} == {"other"}
    assert len(sets.held_out) == 10
    assert len({one.prompt.startswith("Kind?") for one in sets.training}) == 2


def test_a_template_that_asks_for_a_missing_key_is_told_by_line(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"t": "a"}\n' * 3)
    task = {"name": "a", "cluster": "c", "source": str(path), "templates": ["{text}"]}
    other = {**task, "cluster": "d", "answer": "{t}"}
    chosen = InstructionTuned.model_validate(
        {
            "kind": "instruction_tuned",
            "tasks": [{**task, "answer": "{t}"}, other],
            "held_out": ["d"],
        }
    )
    with pytest.raises(ValueError, match=r"rows.jsonl:\d: task 'a' asks for 'text'"):
        task_sets(chosen, seed=0)


def test_the_worlds_kinds_of_request_are_clusters():
    chosen = InstructionTuned(
        kind="instruction_tuned", held_out=["classify"], examples_per_task=10, zero_shot=5
    )
    sets = task_sets(chosen, seed=0)
    assert len({one.category for one in sets.training}) == 7
    assert {one.category for one in sets.held_out} == {"classify"}


def test_baselines_are_stages_before_the_evaluation_and_rows_in_it(tmp_path: Path):
    baselines = [PromptedBase(kind="prompted"), BestOfN(kind="best_of_n", n=4)]
    tuned = InstructionTuned(kind="instruction_tuned", held_out=["classify"])
    config = ExperimentConfig(name="x", baselines=[*baselines, tuned])
    names = [stage.name for stage in experiment_stages(config, tmp_path)]
    assert names[-5:] == ["prompted", "best-of-4", "instructed", "evaluate", "report"]
    compared = list(Evaluate(config, tmp_path).policies)
    assert compared == ["base", "prompted", "instructed", "sft", "best-of-4", "ppo"]


def test_baselines_are_judged_beside_models_and_left_out_of_likelihoods(
    world: tuple[Path, Path], tmp_path: Path
):
    for name in ("prompted", "best-of-4"):
        (tmp_path / name).mkdir()
    ids = shots_ids(load_tokenizer(world[0]), [Demonstration("w1 w2", "good")])
    PromptedPolicy(str(world[0]), prefix=ids).write(tmp_path / "prompted", {})
    best_of(world, 4).write(tmp_path / "best-of-4", {})
    policies = {"base": world[0], "prompted": tmp_path / "prompted", "sft": world[0]}
    setting = Inputs(
        EvaluationConfig(sampling=SAMPLING, resamples=50, sign_flips=50),
        {**policies, "best-of-4": tmp_path / "best-of-4"},
        prompts=PROMPTS,
        held_out_texts=["w1 w2 w3", "w4 w5"],
        reward_model=world[1],
    )
    results = evaluate(setting, tmp_path / "out")
    score = {c.model: c.value for c in results.cells if c.quantity.metric == "score"}
    assert score["best-of-4"] > score["sft"] == score["base"] != score["prompted"]
    assert {c.model for c in results.cells if c.quantity.suite == "pretraining"} == {"base", "sft"}
    assert any("nats" in note for note in results.notes)
