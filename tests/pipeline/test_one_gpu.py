"""Recipes for one GPU: each trains a tiny model of its architecture on rows of its own formats.

The rows are made by hand in the formats that the data sets' cards show; nothing is fetched.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.config.shipped import configs_folder
from pipeline.estimate.known_shapes import model_config
from pipeline.steps.order import run_experiment
from reward_models.atomic_files import write_jsonl
from reward_models.conversations import Turn
from stages.config import HUB, external_names
from stages.data.demonstrations import load_demonstrations, load_prompts
from stages.data.preferences import load_pairs
from tests.architectures.tiny import save

RECIPES = sorted(path.stem for path in (configs_folder() / "one_gpu").glob("*.yaml"))
USUAL = ("qwen3-0.6b", "qwen3-8b-nf4")  # in the ordinary tests
CASES = [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in RECIPES]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = 12


def ultrafeedback(number: int) -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrafeedback_binarized; all its splits have these columns."""
    asked = {"role": "user", "content": f"Why is {number}?"}
    good, bad = (
        [asked, {"role": "assistant", "content": text}] for text in (f"So {number}.", "No.")
    )
    return {
        "prompt": asked["content"],
        "prompt_id": f"{number:064x}",
        "chosen": good,
        "rejected": bad,
        "messages": good,
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }


def hh_rlhf(number: int) -> dict[str, Any]:
    """A row of Anthropic/hh-rlhf."""
    before = f"\n\nHuman: Hi {number}\n\nAssistant: Yes?\n\nHuman: Is it {number}?\n\nAssistant:"
    return {"chosen": f"{before} It is.", "rejected": f"{before} It may be, who knows?"}


def tldr(number: int) -> dict[str, Any]:
    """A row of trl-lib/tldr."""
    return {"prompt": f"TITLE: {number}\n\nPOST: It rained.\n\nTL;DR:", "completion": " Rain."}


def tldr_preference(number: int) -> dict[str, Any]:
    """A row of trl-lib/tldr-preference."""
    return {"prompt": tldr(number)["prompt"], "chosen": " Rain.", "rejected": " Sun, perhaps."}


FORMATS = {
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "Anthropic/hh-rlhf": hh_rlhf,
    "trl-lib/tldr": tldr,
    "trl-lib/tldr-preference": tldr_preference,
}
SMALL: Mapping[str, tuple[str, ...]] = {
    "sft": ("batch_size=4", "micro_batch_size=2"),
    "reward": ("prompts_per_batch=4", "held_out=0.2"),
    "ppo": (
        "episodes=8",
        "episodes_per_rollout=4",
        "minibatch=4",
        "micro_batch_size=2",
        "warmup_iterations=1",
        "sampling.max_new_tokens=4",
        "sampling.batch_size=4",
        "health.action=warn",
    ),
}


def shrunk(name: str, folder: Path) -> ExperimentConfig:
    """The recipe with local rows in place of each data set, a tiny model, and few small batches."""
    recipe = load_config(Path("one_gpu", name))
    base = tiny_model(recipe.model, folder / "base")
    changes = [f"{'model' if recipe.policy is None else 'policy'}={base}", "threads=1"]
    for number, (keys, marker, source) in enumerate(external_names(recipe)):
        if marker.what == "data":
            row_of = FORMATS[source.removeprefix(HUB).split(":")[0]]
            path = folder / f"{number}.jsonl"
            write_jsonl(path, (row_of(100 * number + row) for row in range(ROWS)))
            changes.append(f"{'.'.join(map(str, keys))}={path}")
    for stage, settings in SMALL.items():
        if getattr(recipe, stage) is not None:
            changes += [f"{stage}.{setting}" for setting in settings]
    return load_config(Path("one_gpu", name), changes)


def tiny_model(public: str, folder: Path) -> Path:
    """A model of two layers of the public one's architecture, with a byte-level tokenizer."""
    save(str(model_config(public).model_type), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_all_its_stages_on_a_tiny_model(name, tmp_path):
    config = shrunk(name, tmp_path)
    run = run_experiment(config, tmp_path / "run", until="ppo").parent
    own = model_config(load_config(Path("one_gpu", name)).model)
    assert AutoConfig.from_pretrained(tmp_path / "base").model_type == own.model_type
    for stage in ("sft", "reward", "ppo"):
        if getattr(config, stage) is not None:
            assert (run / stage / "manifest.json").is_file()
            assert any((run / stage / "model").glob("*.safetensors"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bounds_its_lengths_and_its_rates(name):
    config = load_config(Path("one_gpu", name))
    assert config.data.max_prompt_tokens <= 512
    assert config.ppo.sampling.max_new_tokens <= 256
    longest = config.data.max_prompt_tokens + config.ppo.sampling.max_new_tokens
    assert config.reward.max_tokens >= longest
    assert config.ppo.learning_rate <= 2e-5  # as a family's factor left it
    assert config.reward.learning_rate <= 2e-4


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_rows_of_the_named_data_sets_are_read(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [row(1)])
    (prompt,) = load_prompts(str(path))
    assert "1" in prompt.prompt
    if row is hh_rlhf:
        assert prompt.history == (Turn("user", "Hi 1"), Turn("assistant", "Yes?"))
    if row in (ultrafeedback, tldr):
        (demonstration,) = load_demonstrations(str(path))
        assert demonstration.prompt == prompt.prompt
        assert demonstration.response.strip() in ("So 1.", "Rain.")
    if row is not tldr:
        (task,), (ranking,) = load_pairs(path)
        texts = {response.id: response.text.strip() for response in task.responses}
        best = texts[min(ranking.ranks, key=ranking.ranks.__getitem__)]
        assert best in ("So 1.", "It is.", "Rain.")
        assert task.prompt == prompt.prompt


def test_longer_prompts_are_left_out_and_counted(tmp_path, caplog):
    config = shrunk("qwen3-0.6b", tmp_path)
    long = ultrafeedback(7)
    long |= {"prompt": "x" * 600, "messages": [{"role": "user", "content": "x" * 600}]}
    write_jsonl(Path(config.data.ranking_prompts), [*map(ultrafeedback, range(ROWS)), long])
    run = run_experiment(config, tmp_path / "run", until="data").parent
    left = load_prompts(str(run / "data/ppo_prompts.jsonl"))
    left += load_prompts(str(run / "data/validation_prompts.jsonl"))
    assert len(left) == ROWS
    assert "1 of 13 prompts are left out by data.max_prompt_tokens" in caplog.text
