"""A tiny base, and rankings whose true order is easy to learn: more good words are better."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reward_models.model import RewardModel
from reward_models.records import Demonstration, Ranking, RankingTask, Response
from stages.models import load_tokenizer, tokenizer_hash

WORDS = [f"w{number}" for number in range(20)] + ["good", "bad"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


SHAPE = {
    "vocab_size": 3 + len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.5,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def tiny_base(folder: Path, *, tied: bool = False, **shape: int) -> Path:
    """A saved Llama of two layers with its tokenizer; `shape` changes its config."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPE | shape, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def tiny_reward(policy: Path, folder: Path, *, seed: int = 3, scale: float = 1.0) -> Path:
    """A saved reward model on the policy, with its tokenizer; `scale` spreads its scores."""
    reward, tokenizer = RewardModel.from_base(policy, seed), load_tokenizer(policy)
    with torch.no_grad():
        reward.head.weight.mul_(scale)
    reward.record_training(tokenizer_hash(tokenizer), {"simulated"})
    reward.save(folder)
    return folder


def tiny_tasks(count: int, rng: random.Random) -> list[RankingTask]:
    """Two policies wrote the responses, 3 to 5 to a prompt."""
    tasks = []
    for number in range(count):
        prompt = " ".join(["w0", f"w{number % 20}", *rng.choices(WORDS[:20], k=rng.randint(2, 6))])
        responses = tuple(
            Response(
                f"r{index}", " ".join(rng.choices(WORDS, k=rng.randint(1, 6))), "ab"[index % 2], {}
            )
            for index in range(rng.randint(3, 5))
        )
        tasks.append(RankingTask(f"t{number}", prompt, responses))
    return tasks


def quality(text: str) -> int:
    return text.split().count("good") - text.split().count("bad")


def tiny_rankings(
    tasks: list[RankingTask], annotators: list[str], rng: random.Random, noise: float = 0.0
) -> list[Ranking]:
    """Every annotator ranks every task; equal quality is a tie."""
    rankings = []
    for task in tasks:
        for annotator in annotators:
            seen = {
                one.id: quality(one.text) + round(rng.gauss(0, noise)) for one in task.responses
            }
            levels = sorted(set(seen.values()), reverse=True)
            ranks = {name: levels.index(value) + 1 for name, value in seen.items()}
            rankings.append(Ranking(task.id, annotator, "simulated", ranks))
    return rankings


def tiny_demonstrations(count: int, rng: random.Random) -> list[Demonstration]:
    return [
        Demonstration(prompt=f"w0 w{number}", response=" ".join(rng.choices(WORDS, k=3)))
        for number in range(count)
    ]
