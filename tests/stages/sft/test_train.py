"""The supervised stage: what the loss counts, how it resumes, which epoch it chooses."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reward_models.model import RewardModel
from reward_models.records import Demonstration, Prompt
from stages.adapters.config import LoRA
from stages.chunked_logprobs import IGNORED
from stages.data.supervised import collate, encode, response_loss
from stages.generation.config import SamplingConfig
from stages.models import load_policy, load_tokenizer, save_policy
from stages.progress import Step, silent
from stages.sft.config import SFTConfig
from stages.sft.selection import choose_epoch, epoch_checkpoints
from stages.sft.train import train_sft
from tests.reward_models.tiny import tiny_reward

TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "teal"]
DEMONSTRATIONS = [
    Demonstration(f"Which colour is the {thing}?", f"It is {colour}{'!' * (index % 3)}")
    for index, (thing, colour) in enumerate(zip("abcdefghij", COLOURS, strict=True))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([d.prompt + " " + d.response for d in DEMONSTRATIONS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    path = tmp_path_factory.mktemp("base")
    save_policy(model, tokenizer, path)
    return path


def config(**changes: object) -> SFTConfig:
    ours = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "dropout": 0.1}
    return SFTConfig.model_validate({**ours, **changes})


Run = Callable[..., list[Step]]


@pytest.fixture(scope="module")
def train(base: Path) -> Run:
    def run(out: Path, settings: SFTConfig, stop_after: int | None = None) -> list[Step]:
        steps: list[Step] = []

        def listen(step: Step) -> None:
            steps.append(step)
            if stop_after is not None and step.done > stop_after:
                raise KeyboardInterrupt

        train_sft(
            settings,
            base=base,
            demonstrations=DEMONSTRATIONS[:8],
            validation=DEMONSTRATIONS[8:],
            out=out,
            seed=3,
            report=listen,
        )
        return steps

    return run


@pytest.fixture(scope="module")
def finished(train: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    """A run by `config()`, for tests that only look at it."""
    out = tmp_path_factory.mktemp("finished")
    return out, train(out, config())


def weights(path: Path) -> bytes:
    return next(path.glob("*.safetensors")).read_bytes()


def losses(steps: list[Step], name: str = "sft/loss_nats_per_token") -> list[float]:
    return [step.metrics[name] for step in steps if name in step.metrics]


def test_labels_are_the_response_with_eos_and_nothing_else(base):
    tokenizer = load_tokenizer(base)
    examples = [encode(tokenizer, d) for d in DEMONSTRATIONS[:3]]
    batch = collate(examples, tokenizer.pad_token_id)
    for demonstration, labels_L in zip(DEMONSTRATIONS, batch["labels"], strict=False):
        labelled = labels_L[labels_L != IGNORED].tolist()
        assert tokenizer.decode(labelled) == f" {demonstration.response}<|end|>"


def test_a_demonstration_keeps_its_context_before_its_prompt(base):
    tokenizer = load_tokenizer(base)
    demonstration = Demonstration("Which colour is a?", "red", context="The a is red.")
    text = tokenizer.decode(encode(tokenizer, demonstration).ids)
    assert text == "User: The a is red.\n\nWhich colour is a?\nAssistant: red<|end|>"


def test_the_validation_loss_is_a_mean_over_tokens_whatever_the_batch(base):
    tokenizer, model = load_tokenizer(base), load_policy(base)
    examples = [encode(tokenizer, d) for d in DEMONSTRATIONS]
    nats, tokens = 0.0, 0
    for example in examples:  # the slow way: one by one, token by token
        log_p_LV = model(torch.tensor([example.ids])).logits[0].log_softmax(-1)
        for index in range(example.response_start, len(example.ids)):
            nats -= log_p_LV[index - 1, example.ids[index]].item()
            tokens += 1
    for batch_size in (1, 3, 10):
        loss = response_loss(model, examples, tokenizer.pad_token_id, batch_size=batch_size)
        assert loss == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_the_first_loss_is_the_mean_over_response_tokens_of_the_batch(
    base, train, tmp_path, micro_batch_size
):
    """Whatever the micro-batches: a mean of their means is another number (transformers 34191)."""
    everything = config(epochs=1, batch_size=8, micro_batch_size=micro_batch_size, dropout=0.0)
    first = losses(train(tmp_path, everything))[0]
    tokenizer, model = load_tokenizer(base), load_policy(base)
    examples = [encode(tokenizer, d) for d in DEMONSTRATIONS[:8]]
    exact = response_loss(model, examples, tokenizer.pad_token_id, batch_size=8)
    assert first == pytest.approx(exact, rel=1e-5)
    alone = [response_loss(model, [one], tokenizer.pad_token_id, batch_size=1) for one in examples]
    assert sum(alone) / len(alone) != pytest.approx(exact, rel=5e-5)


def test_four_micro_batches_of_two_equal_one_batch_of_eight(train, tmp_path):
    whole = losses(train(tmp_path / "a", config(batch_size=8, dropout=0.0)))
    parts = losses(train(tmp_path / "b", config(batch_size=8, micro_batch_size=2, dropout=0.0)))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_learning_rate_falls_from_its_peak_along_a_cosine_to_a_tenth(finished):
    rates = losses(finished[1], "sft/learning_rate")
    expected = [1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2) for k in range(6)]
    assert rates == pytest.approx(expected)


def test_the_loss_falls_and_nothing_is_printed(train, tmp_path, capfd):
    steps = train(tmp_path, config(epochs=6))
    assert losses(steps)[-1] < losses(steps)[0] - 1
    assert capfd.readouterr().out == ""
    assert all(step.total == 12 for step in steps[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptation": {"family": "full"}},
        {"adaptation": {"family": "lora", "rank": 2}},
        {"optimizer": "adamw_8bit"},
    ],
)
def test_an_interrupted_run_ends_bit_equal_to_an_unbroken_one(train, tmp_path, changes):
    settings = config(**changes)
    unbroken = train(tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings, stop_after=4)
    half = tmp_path / "b" / "checkpoints" / "incomplete" / "checkpoint-6"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    resumed = train(tmp_path / "b", settings)
    assert weights(tmp_path / "a" / "model") == weights(tmp_path / "b" / "model")
    assert losses(resumed) == losses(unbroken)[-len(losses(resumed)) :]
    assert len(losses(resumed)) == 2
    assert not half.exists()


def test_two_runs_with_one_seed_are_bit_equal(train, finished, tmp_path):
    train(tmp_path, config())
    assert weights(finished[0] / "model") == weights(tmp_path / "model")


def test_a_finished_run_is_not_trained_again(train, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    assert losses(train(out, config())) == []


def test_the_epoch_of_lowest_validation_loss_is_the_result(base, train, tmp_path):
    seen = losses(train(tmp_path, config(epochs=6)), "sft/validation_loss_nats_per_token")
    chosen = json.loads((tmp_path / "selection.json").read_text())
    assert [row["validation_loss"] for row in chosen["epochs"]] == seen
    assert chosen["epoch"] == seen.index(min(seen)) + 1
    tokenizer = load_tokenizer(base)
    examples = [encode(tokenizer, d) for d in DEMONSTRATIONS[8:]]
    model = load_policy(tmp_path / "model")
    assert response_loss(model, examples, tokenizer.pad_token_id, batch_size=4) == min(seen)


def test_a_reward_model_chooses_among_the_epochs_without_training(base, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "sft")
    choose = {
        "reward_model": tiny_reward(base, tmp_path / "reward", seed=0),
        "selection_prompts": [Prompt(d.prompt) for d in DEMONSTRATIONS],
        "sampling": SamplingConfig(max_new_tokens=8),
        "seed": 0,
        "report": silent,
    }
    choose_epoch(tmp_path / "sft", out=tmp_path / "sft", **choose)
    chosen = json.loads((tmp_path / "sft" / "selection.json").read_text())
    scores = [row["mean_score"] for row in chosen["epochs"]]
    assert chosen["epoch"] == scores.index(max(scores)) + 1
    best = epoch_checkpoints(tmp_path / "sft" / "checkpoints")[chosen["epoch"] - 1]
    assert weights(tmp_path / "sft" / "model") == weights(best)


def test_a_reward_model_of_another_tokenizer_is_refused(base, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "sft")
    scorer = RewardModel.from_base(base, seed=0)
    scorer.record_training("0" * 64, {"simulated"})
    scorer.save(tmp_path / "reward")
    with pytest.raises(ValueError, match="a reward model must read what the policy writes"):
        choose_epoch(
            tmp_path / "sft",
            reward_model=tmp_path / "reward",
            selection_prompts=[Prompt("Which colour?")],
            sampling=SamplingConfig(max_new_tokens=4),
            out=tmp_path / "sft",
            seed=0,
            report=silent,
        )


def test_only_weights_are_kept_of_a_finished_run(finished):
    left = {path.name for path in (finished[0] / "checkpoints").rglob("*") if path.is_file()}
    assert "model.safetensors" in left
    assert not left & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "README.md"}


def test_lora_moves_the_adapter_alone(base, train, tmp_path):
    train(tmp_path, config(adaptation=LoRA(rank=2).model_dump()))
    before, after = load_policy(base), load_policy(tmp_path / "model")
    frozen = dict(before.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    names = dict(after.named_parameters())
    assert torch.equal(
        names["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"], frozen
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat is not a training argument"),
        ({"trainer": {"learning_rate": 1}}, "use the stage's own settings"),
        ({"max_tokens": 3}, r"none of 8 demonstrations has at most max_tokens \(3\) tokens"),
        ({"adaptation": {"family": "lora", "target_modules": ["nope"]}}, "target_modules"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_leave_nothing(train, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(tmp_path / "out", config(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model").exists()


def test_nothing_to_choose_by_is_said_before_training(base, tmp_path):
    with pytest.raises(ValueError, match="3 epochs to choose from but nothing to choose by"):
        train_sft(
            config(),
            base=base,
            demonstrations=DEMONSTRATIONS,
            out=tmp_path,
            seed=0,
        )
