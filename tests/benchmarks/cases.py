"""The cases: a model shape, prompts, response lengths and the settings both sides share.

Nothing is downloaded: weights are random, and one coordinate of the hidden state is a constant by
which the end token gets the probability that a mean response length asks for.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END, PAD = 0, 1  # token ids


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of this size; the vocabulary counts END and PAD."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class Written:
    """The settings of a worker, as JSON, since it may run in another environment."""

    name: str
    shape: Shape

    def write(self, path: Path) -> None:
        """For a worker to `read`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file that `write` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "shape": Shape(**fields["shape"])})


@dataclass(frozen=True, slots=True)
class Case(Written):
    """One PPO step of both sides: lengths in tokens, batches in episodes."""

    episodes: int = 32
    minibatch: int = 32
    micro: int = 8
    inner_epochs: int = 1
    shortest_prompt: int = 8
    longest_prompt: int = 32
    response_limit: int = 48
    mean_response: int | None = 16  # None: all responses have the full length
    lora_rank: int | None = None
    top_layers: int | None = None  # of policy and critic, the only ones that move
    learning_rate: float = 1e-6
    one_backbone: bool = False  # of ours, reward model and critic are LoRA adapters too
    merged: bool = False  # of ours, whether LoRA samples merged
    first_pass: bool = True  # of ours, whether `ppo.cached.first_forward` is set
    lower_layers: bool = True  # of ours, what `ppo.cached.lower_layers` is
    packed: bool = True  # of ours, what `ppo.packed` is
    device: str = "cpu"  # or "cuda": ours in the verb's default precision, the peer's under bf16
    compiled: bool = False  # of ours, what `sampling.compiled` is
    models: str = "separate"  # of ours, what `ppo.models.kind` is; the peer's are four models


SMALL = Shape(vocabulary=4096, hidden=256, inner=688, layers=6, heads=4, kv_heads=4)  # 5.8 million
LLAMA = Shape(32768, hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8)  # 1.1 billion
SMOLLM2 = Shape(vocabulary=49152, hidden=576, inner=1536, layers=30, heads=9, kv_heads=3)  # 135 M


def make_policy(case: Case, folder: Path, *, seed: int = 0) -> None:
    """Write the policy and its tokenizer, in the layout of the hub."""
    shape = case.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    _set_end_probability(model, case)
    model.save_pretrained(str(folder))
    tokenizer(shape.vocabulary).save_pretrained(str(folder))


def _set_end_probability(model: LlamaForCausalLM, case: Case) -> None:
    """Coordinate 0 is 1 in every embedding; END's and PAD's rows of the head read nothing else."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        head_VD = model.lm_head.weight
        head_VD[:, 0] = 0.0
        head_VD[[END, PAD]] = 0.0
        ids_BL = torch.randint(2, case.shape.vocabulary, (8, 24))
        constant = model.model(input_ids=ids_BL).last_hidden_state[..., 0].mean()
        others = torch.tensor(float(case.shape.vocabulary - 2)).log()
        never = torch.tensor(-1e4)
        mean = case.mean_response
        end = never if mean is None else others - torch.tensor(float(mean - 1)).log()
        head_VD[END, 0] = end / constant
        head_VD[PAD, 0] = never / constant


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for every id; texts are never read, but trainers want a tokenizer."""
    words = {"<end>": END, "<pad>": PAD} | {f"w{n}": n for n in range(2, vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<end>",
        pad_token="<pad>",
        padding_side="left",
        chat_template="{% for m in messages %}{{ m.content }} {% endfor %}",
    )


def prompts(case: Case, count: int, *, seed: int = 1) -> list[list[int]]:
    """Random token ids, of lengths drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    span = (case.shortest_prompt, case.longest_prompt + 1)
    lengths = torch.randint(*span, (count,), generator=generator).tolist()
    return [
        torch.randint(2, case.shape.vocabulary, (n,), generator=generator).tolist() for n in lengths
    ]


def load_policy_of(folder: Path) -> LlamaForCausalLM:
    """The policy that `make_policy` wrote."""
    loaded: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(str(folder))
    return loaded
