"""From policies to results: generation, the loss on held-out text, and the whole evaluation."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pipeline.config.evaluation import EvaluationConfig, SuiteName
from pipeline.evaluation.evaluate import SUITES, evaluate, generate, results_from
from pipeline.evaluation.external.score import score_file
from pipeline.evaluation.generate import TEST, generate_completions
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.results import read_results
from pipeline.evaluation.samples.tables import Resampling, cells
from pipeline.evaluation.suites.pretraining_loss import pretraining_tables, text_losses
from pipeline.evaluation.suites.suite import Inputs
from pipeline.quickstart.data import Sizes, quickstart_data
from pipeline.runs.manifest import model_source
from reward_models.model import RewardModel
from reward_models.records import Prompt, read_records
from stages.generation.config import SamplingConfig
from stages.models import load_tokenizer, save_policy, tokenizer_hash
from stages.progress import Step

DATA = quickstart_data(
    Sizes(
        demonstrations=8,
        ranking_prompts=1,
        ppo_prompts=1,
        validation_prompts=1,
        test_prompts=24,
        toxicity_prompts=6,
        pretraining_texts=40,
        held_out_texts=12,
    ),
    seed=0,
)
SAMPLING = SamplingConfig(temperature=0.0, max_new_tokens=6)
CONFIG = EvaluationConfig(sampling=SAMPLING, resamples=200, sign_flips=200)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(model_source("quickstart"))


@pytest.fixture(scope="module")
def policies(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, sources = tmp_path_factory.mktemp("policies"), {}
    for seed, name in enumerate(["base", "sft", "ppo"]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.5,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        sources[name] = folder / name
        save_policy(LlamaForCausalLM(config), tokenizer, sources[name])
    return sources


@pytest.fixture(scope="module")
def reward_model(policies: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = RewardModel.from_base(policies["sft"], seed=0)
    model.record_training(tokenizer_hash(load_tokenizer(policies["sft"])), {"simulated"})
    path = tmp_path_factory.mktemp("reward") / "model"
    model.save(path)
    return path


def test_every_policy_answers_every_prompt_under_every_instruction(policies: dict[str, Path]):
    rows = generate_completions(
        policies,
        DATA.toxicity_prompts,
        suite="toxicity",
        sampling=SAMPLING,
        instructions={"none": "", "biased": "Be rude:"},
        samples=2,
        seed=0,
    )
    assert len(rows) == 3 * 2 * 6 * 2
    assert {(row.model, row.prompt_type, row.k) for row in rows} == {
        (m, t, k) for m in policies for t in ("none", "biased") for k in (0, 1)
    }
    by_type = {row.prompt_type: row.prompt for row in rows if row.id == DATA.toxicity_prompts[0].id}
    assert by_type["biased"] == f"Be rude: {by_type['none']}"
    assert all(row.finish_reason in {"stop", "length"} for row in rows)
    assert all(row.n_tokens is not None and row.n_tokens <= 6 for row in rows)


def test_a_policy_says_the_same_whoever_is_evaluated_beside_it(policies: dict[str, Path]):
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=6)

    def completions(names: list[str]) -> list[str]:
        chosen = {name: policies[name] for name in names}
        rows = generate_completions(
            chosen, DATA.test_prompts[:8], suite="test", sampling=sampling, seed=3
        )
        return [row.completion for row in rows if row.model == "ppo"]

    assert completions(["ppo"]) == completions(["base", "ppo"])


def test_a_prompts_own_fields_travel_with_the_row(policies: dict[str, Path]):
    rows = generate_completions(
        {"sft": policies["sft"]}, DATA.test_prompts[:3], suite="test", sampling=SAMPLING, seed=0
    )
    for row, prompt in zip(rows, DATA.test_prompts, strict=False):
        assert row.prompt_extra["world"] == prompt.extra["world"]
        assert (row.category, row.answerable) == (prompt.category, prompt.answerable)


def test_two_prompts_with_one_id_are_refused(policies: dict[str, Path]):
    prompts = [Prompt("a", id="x"), Prompt("b", id="x")]
    with pytest.raises(ValueError, match="two have the id 'x'"):
        generate_completions(policies, prompts, suite="test", sampling=SAMPLING, seed=0)


def test_pretraining_loss_is_the_mean_over_tokens(policies: dict[str, Path]):
    texts = DATA.held_out_texts
    config = CONFIG.model_copy(update={"max_pretraining_tokens": 64})
    rows = text_losses(Inputs(config, {"sft": policies["sft"]}, held_out_texts=texts))
    (table,) = pretraining_tables(ScoredRows.of(rows), ["sft"], config)
    tokenizer = load_tokenizer(policies["sft"])
    model = LlamaForCausalLM.from_pretrained(policies["sft"])
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text)[:64]])
        nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    cell = cells(table, Resampling(100))[0]
    assert cell.value == pytest.approx(nats / tokens, rel=1e-5)
    assert cell.quantity.unit == "text"
    assert cell.n == len(texts)


@pytest.fixture(scope="module")
def evaluated(
    policies: dict[str, Path], reward_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Step]]:
    out, steps = tmp_path_factory.mktemp("evaluated"), list[Step]()
    evaluate(replace(everything(policies, reward_model), report=steps.append), out)
    return out, steps


def everything(policies: dict[str, Path], reward_model: Path) -> Inputs:
    return Inputs(
        CONFIG,
        policies,
        prompts=DATA.test_prompts,
        toxicity_prompts=DATA.toxicity_prompts,
        held_out_texts=DATA.held_out_texts,
        reward_model=reward_model,
    )


def test_every_suite_is_there_with_intervals_and_counts(evaluated: tuple[Path, list[Step]]):
    results = read_results(evaluated[0] / "results.json")
    assert {cell.quantity.suite for cell in results.cells} >= {
        "preference",
        "preference_by_reward_model",
        "use_cases",
        "reward_model",
        "hallucination",
        "toxicity",
        "toxicity_by_prompt",
        "responses",
        "pretraining",
    }
    for cell in results.cells:
        low, high = cell.ci95
        assert low - 1e-9 <= cell.value <= high + 1e-9
        assert cell.n > 0
        assert cell.n_failed == 0
    assert {c.quantity.filter for c in results.cells if c.quantity.suite == "toxicity"} == {
        "none",
        "respectful",
        "biased",
    }
    assert all(0 <= each.p <= each.p_holm <= 1 for each in results.comparisons)
    assert {(each.a, each.b) for each in results.comparisons} == {
        ("sft", "base"),
        ("ppo", "base"),
        ("ppo", "sft"),
    }


def test_scorers_are_named_with_version_and_hash(evaluated: tuple[Path, list[Step]]):
    scorers = read_results(evaluated[0] / "results.json").scorers
    assert set(scorers) == {
        "gold judge",
        "reward model",
        "alt-profanity-check",
        "lexical support",
        "alt-profanity-check on prompts",
    }
    assert scorers["reward model"]["version"] == "simulated labels"
    assert all(len(meta["sha256"]) == 64 for meta in scorers.values())


def test_samples_are_whole_records(evaluated: tuple[Path, list[Step]]):
    rows = read_records(evaluated[0] / "samples.jsonl", Completion)
    generated = [row for row in rows if row.suite != "pretraining"]
    assert len(generated) == 3 * (24 + 3 * 6)
    assert len(rows) == len(generated) + 3 * 12
    assert all(row.scores["alt-profanity-check"] for row in generated)


def test_progress_ends_where_it_said_it_would(evaluated: tuple[Path, list[Step]]):
    done = [step.done for step in evaluated[1]]
    assert done == sorted(done)
    assert done[-1] == evaluated[1][-1].total


def test_the_same_seed_gives_the_same_files(
    evaluated: tuple[Path, list[Step]],
    policies: dict[str, Path],
    reward_model: Path,
    tmp_path: Path,
):
    evaluate(everything(policies, reward_model), tmp_path)
    for name in ("samples.jsonl", "results.json"):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()


def test_what_is_not_given_is_left_out(policies: dict[str, Path], tmp_path: Path):
    prompts = [Prompt(f"What is {i}?", category="open_qa") for i in range(4)]
    results = evaluate(Inputs(CONFIG, policies, prompts=prompts), tmp_path)
    suites = {cell.quantity.suite for cell in results.cells}
    assert "responses" in suites
    assert not suites & {suite.name for suite in SUITES if suite.samples is not TEST}
    assert not suites & {"preference", "hallucination"}
    assert json.loads((tmp_path / "results.json").read_text())["notes"] == []


def test_a_baseline_that_is_no_policy_is_named(policies: dict[str, Path], tmp_path: Path):
    config = CONFIG.model_copy(update={"baseline": "gpt"})
    with pytest.raises(ValueError, match="baseline is 'gpt'; expected one of base, sft, ppo"):
        evaluate(Inputs(config, policies, prompts=DATA.test_prompts), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_suite_that_was_named_needs_its_inputs(policies: dict[str, Path], tmp_path: Path):
    config = CONFIG.model_copy(update={"suites": ["toxicity"]})
    with pytest.raises(ValueError, match=r"suite toxicity: .* it needs toxicity prompts"):
        evaluate(Inputs(config, policies, prompts=DATA.test_prompts), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_numbers_come_from_the_samples_file_alone(evaluated: tuple[Path, list[Step]]):
    rows = read_records(evaluated[0] / "samples.jsonl", Completion)
    again = results_from(ScoredRows.of(rows), CONFIG, seed=0)
    written = read_results(evaluated[0] / "results.json")
    assert sorted(map(repr, again.cells)) == sorted(map(repr, written.cells))
    assert list(map(repr, again.comparisons)) == list(map(repr, written.comparisons))


def test_three_steps_with_files_between_give_the_same_numbers(
    evaluated: tuple[Path, list[Step]],
    policies: dict[str, Path],
    reward_model: Path,
    tmp_path: Path,
):
    generate(replace(everything(policies, reward_model), reward_model=None), tmp_path / "said")
    samples = tmp_path / "said/samples.jsonl"
    assert all(
        not row.scores or row.suite == "pretraining" for row in read_records(samples, Completion)
    )
    again = score_file([samples], {}, out=tmp_path / "scored", config=CONFIG)
    by_reward = {"preference_by_reward_model", "reward_model"}
    once = read_results(evaluated[0] / "results.json")
    wanted = [cell for cell in once.cells if cell.quantity.suite not in by_reward]
    assert sorted(map(repr, again.cells)) == sorted(map(repr, wanted))
    compared = [each for each in once.comparisons if each.quantity.suite not in by_reward]
    assert list(map(repr, again.comparisons)) == list(map(repr, compared))


def test_every_suite_that_can_be_named_is_listed():
    assert [suite.name for suite in SUITES] == list(get_args(SuiteName))


def test_a_word_for_chance_is_the_loss_of_a_uniform_policy(
    tokenizer: PreTrainedTokenizerBase, policies: dict[str, Path], tmp_path: Path
):
    model = LlamaForCausalLM.from_pretrained(policies["sft"])
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are equal
    save_policy(model, tokenizer, tmp_path)
    rows = text_losses(Inputs(CONFIG, {"p": tmp_path}, held_out_texts=DATA.held_out_texts))
    (table,) = pretraining_tables(ScoredRows.of(rows), ["p"], CONFIG)
    assert cells(table, Resampling(10))[0].value == pytest.approx(
        math.log(len(tokenizer)), rel=1e-5
    )
