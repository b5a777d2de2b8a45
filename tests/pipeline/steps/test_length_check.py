"""Prompts that are too long for a later stage stop a run before anything is trained."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import checked
from pipeline.evaluation.generate import generate_completions
from pipeline.steps.order import experiment_stages, run_experiment
from reward_models.atomic_files import write_jsonl
from reward_models.records import Demonstration, Prompt
from stages.adapters.config import Prompt as SoftPrompt
from stages.generation.config import SamplingConfig
from stages.ppo import train as ppo
from stages.ppo.config import PPOConfig
from stages.progress import Step
from stages.reward.config import RewardConfig
from stages.reward.train import within_positions
from stages.sft import train as sft
from stages.sft.config import SFTConfig
from stages.sft.train import train_sft
from tests.reward_models.tiny import WORDS, tiny_base, tiny_tokenizer

POSITIONS = 24
SAMPLING = {"temperature": 1.0, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a table of few positions."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
    GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=len(tokenizer), eos_token_id=1)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def experiment(base: Path, folder: Path, long: dict[str, int], **more: Any) -> ExperimentConfig:
    """Tiny files; the first prompt of each set named in `long` has so many words."""
    sets = {
        "demonstrations": [{"prompt": f"{a} {b}", "response": b} for a in WORDS for b in WORDS[:2]],
        "ranking_prompts": [{"prompt": f"{a} w1"} for a in WORDS],
        "ppo_prompts": [{"prompt": f"{a} w2"} for a in WORDS],
        "validation_prompts": [{"prompt": f"{a} w3"} for a in WORDS[:3]],
        "test_prompts": [{"prompt": f"{a} w4"} for a in WORDS[:3]],
        "toxicity_prompts": [{"prompt": f"{a} w5"} for a in WORDS[:3]],
    }
    for name, rows in sets.items():
        if name in long:
            rows[0]["prompt"] = " ".join(["w7"] * long[name])
        write_jsonl(folder / f"{name}.jsonl", rows)
    pairs = [{"prompt": a, "chosen": f"{a} good", "rejected": "bad"} for a in WORDS]
    write_jsonl(folder / "pairs.jsonl", pairs)
    mapping: dict[str, Any] = {
        "name": "long",
        "model": str(base),
        "data": {"kind": "files", **{name: str(folder / f"{name}.jsonl") for name in sets}},
        "sft": {"selection": SAMPLING},
        "sampling": {"settings": [SAMPLING]},
        "labeling": {"kind": "imported", "rankings": str(folder / "pairs.jsonl")},
        "ppo": {"validation": {}, "sampling": SAMPLING},
        "evaluation": {"sampling": SAMPLING, "instructions": {"none": "", "polite": "w1 w2"}},
    }
    return checked({**mapping, **more}, "test")


def refusal(config: ExperimentConfig, folder: Path) -> str:
    """The line of a run that is refused; nothing but data has been made then."""
    with pytest.raises(ValueError, match="positions") as caught:
        run_experiment(config, folder / "run")
    assert "\n" not in str(caught.value)
    stages = {path.parent.name for path in (folder / "run").glob("*/started.json")}
    assert stages == {"data"}
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["ranking_prompts", "ppo_prompts", "validation_prompts", "test_prompts"]
)
def test_a_long_prompt_of_a_later_stage_is_refused_before_the_first(
    name: str, base: Path, tmp_path: Path
):
    line = refusal(experiment(base, tmp_path, {name: POSITIONS - 3}), tmp_path)
    assert line.startswith(f"{name} (the longest prompt, 'w7 w7")
    assert f"{POSITIONS + 1} tokens, {base} has {POSITIONS} positions" in line


def test_an_instruction_before_a_toxicity_prompt_counts(base: Path, tmp_path: Path):
    config = experiment(base, tmp_path, {"toxicity_prompts": POSITIONS - 5})
    assert refusal(config, tmp_path).startswith("toxicity_prompts")


def test_a_soft_prompt_counts_for_the_stage_that_trains_it(base: Path, tmp_path: Path):
    family = {"family": "prompt", "length": 5}
    ppo_settings = {"sampling": SAMPLING, "adaptation": family}
    config = experiment(base, tmp_path, {"ppo_prompts": POSITIONS - 8}, ppo=ppo_settings)
    assert f"has {POSITIONS - 5} positions" in refusal(config, tmp_path)


def test_examples_of_pretraining_text_have_to_fit(base: Path, tmp_path: Path):
    write_jsonl(tmp_path / "texts.jsonl", ({"text": a} for a in WORDS))
    given = experiment(base, tmp_path, {}).model_dump(mode="json")
    given["data"]["pretraining_texts"] = str(tmp_path / "texts.jsonl")
    given["ppo_ptx"] = {"pretraining": {"tokens_per_example": POSITIONS + 1}, "sampling": SAMPLING}
    line = refusal(checked(given, "test"), tmp_path)
    assert line.startswith("ppo_ptx.pretraining.tokens_per_example: 25 tokens")


def test_test_prompts_that_stand_twice_are_refused_before_anything_is_trained(
    base: Path, tmp_path: Path
):
    config = experiment(base, tmp_path, {})
    rows = [{"prompt": "w1 w4"}, {"prompt": "w1 w4"}]
    write_jsonl(tmp_path / "test_prompts.jsonl", rows)
    with pytest.raises(ValueError, match="two have the id"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run/sft").exists()


def never(*_: object, **__: object) -> None:
    raise AssertionError("loaded")


LONG = " ".join(["w7"] * (POSITIONS + 1))


def test_sft_refuses_what_no_position_is_left_for_before_it_loads(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sft, "load_policy", never)
    with pytest.raises(ValueError, match=rf"at most {POSITIONS} tokens, for which .* positions"):
        train(base, tmp_path, [Demonstration(LONG, "x")] * 2, SFTConfig(epochs=1, batch_size=2))


def test_sft_leaves_out_and_counts_what_is_longer_than_the_positions(base: Path, tmp_path: Path):
    short = [Demonstration("w1", "w2"), Demonstration("w2", "w3")]
    demonstrations = [Demonstration(LONG, "x"), *short]
    steps = train(base, tmp_path, demonstrations, SFTConfig(epochs=1, batch_size=2))
    assert steps[0].metrics["sft/left_out"] == 1


def train(
    base: Path, folder: Path, demonstrations: list[Demonstration], config: SFTConfig
) -> list[Step]:
    steps: list[Step] = []
    train_sft(
        config,
        base=base,
        demonstrations=demonstrations,
        out=folder / "out",
        seed=0,
        report=steps.append,
    )
    return steps


def test_the_reward_model_leaves_out_what_is_longer_than_the_positions(base: Path):
    assert within_positions(RewardConfig(), base).max_tokens == POSITIONS
    assert within_positions(RewardConfig(max_tokens=7), base).max_tokens == 7
    soft = RewardConfig(adaptation=SoftPrompt(length=5))
    assert within_positions(soft, base).max_tokens == POSITIONS - 5


def test_ppo_refuses_a_long_prompt_before_it_loads(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ppo, "load_models", never)
    config = PPOConfig(sampling=SamplingConfig(**SAMPLING))
    with pytest.raises(ValueError, match=f"the policy has {POSITIONS} positions"):
        ppo.train_ppo(
            config,
            policy=base,
            reward_model=tiny_base(tmp_path / "other"),
            prompts=[Prompt(LONG)],
            out=tmp_path / "out",
            seed=0,
        )


def test_an_evaluation_refuses_a_long_prompt_before_it_loads(
    base: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stages.models.load_policy", never)
    with pytest.raises(ValueError, match=f"{base} has {POSITIONS} positions"):
        generate_completions(
            {"base": base},
            [Prompt("w1"), Prompt(LONG)],
            suite="test",
            sampling=SamplingConfig(**SAMPLING),
            seed=0,
        )


def test_a_run_whose_texts_fit_is_not_refused(base: Path, tmp_path: Path):
    logging.disable(logging.WARNING)
    config = experiment(base, tmp_path, {"ranking_prompts": POSITIONS - 4})
    try:
        run_experiment(config, tmp_path / "run", until="data")
        for stage in experiment_stages(config, tmp_path / "run"):
            stage.check_data()
    finally:
        logging.disable(logging.NOTSET)
