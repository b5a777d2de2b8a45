"""The estimates of `rlhf doctor CONFIG`, compared with real models and a real run."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.estimate.changes import LORA, smaller, with_values
from pipeline.estimate.doctor import estimate_lines
from pipeline.estimate.known_shapes import KNOWN, model_config
from pipeline.estimate.lengths import lengths
from pipeline.estimate.model_size import model_size
from pipeline.estimate.sharded import StageMemory, placement
from pipeline.estimate.stages import stage_estimates
from reward_models import records
from reward_models.atomic_files import write_jsonl
from stages.adapters.config import Full, LoRA, Restricted
from stages.models import adapt, load_policy, load_tokenizer, trainable_parameters
from stages.ppo.config import SeparateModels
from tests.benchmarks.memory_table import gib, one_card
from tests.reward_models.tiny import (
    WORDS,
    tiny_base,
    tiny_demonstrations,
    tiny_rankings,
    tiny_tasks,
    tiny_tokenizer,
)
from tests.stages.adapters.family_cells import FAMILIES

ROOT = Path(__file__).parents[3]
WITHIN = 1.5  # predicted over measured peak, either way


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    "adaptation", FAMILIES.values(), ids=lambda adaptation: str(adaptation.family)
)
def test_counts_without_weights_are_those_of_the_loaded_model(
    base: Path, adaptation: Full | Restricted
) -> None:
    loaded = adapt(load_policy(base), adaptation, load_tokenizer(base))
    size = model_size(base, adaptation)
    assert size.parameters == sum(p.numel() for p in loaded.parameters())
    assert size.trainable == trainable_parameters(loaded)
    cache = load_policy(base)(torch.zeros(1, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(key.nbytes + value.nbytes for key, value, *_ in cache)
    assert size.cached * 4 == held / 5


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("EleutherAI/pythia-1.4b", 1.41),
        ("EleutherAI/pythia-6.9b", 6.86),
        ("tiiuae/falcon-7b", 6.92),
        ("tiiuae/falcon-180B", 178.6),
        ("HuggingFaceTB/SmolLM2-135M", 0.1345),
        ("HuggingFaceTB/SmolLM2-1.7B", 1.711),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.236),
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-1.5B", 1.54),
        ("Qwen/Qwen2.5-3B", 3.09),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen3-0.6B", 0.596),
        ("Qwen/Qwen3-1.7B", 1.72),
        ("Qwen/Qwen3-8B", 8.19),
    ],
)
def test_known_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(name))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.005)
    assert name.removesuffix("-Instruct") in KNOWN


def test_a_model_of_unknown_size_is_refused_in_one_line(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path, "its size is not known"),
        (tmp_path / "no", "no such folder"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            model_config(source)
        assert "\n" not in str(caught.value)


NEED = StageMemory(
    "sft", weights=400, gradients=400, optimizer=800, activations=100, cache=50, masters=400
)
PPO = StageMemory(
    "ppo",
    weights=400,
    critic=400,
    reference=400,
    reward=400,
    gradients=800,
    optimizer=1600,
    average=400,
    activations=100,
    cache=50,
    policy=400,
    masters=800,
    in_buckets=False,
)


def test_a_rank_of_four_holds_a_quarter_of_what_zero_shards() -> None:
    totals = {how: NEED.sharded(how, 4).total for how in ("none", "ddp", "zero1", "zero2", "zero3")}
    assert totals == {
        "none": 1700,  # 400 + 400 + 800, and the larger of 100 and 50
        "ddp": 2100,  # and the buckets
        "zero1": 400 + 400 + 300 + 100,  # Adam's 800 and a copy of the weights, a quarter
        "zero2": 400 + 100 + 300 + 100,
        "zero3": 100 + 100 + 300 + 100,
    }
    assert NEED.sharded("fsdp2", 4).total == 100 + 100 + 200 + 100  # and no copy of the weights
    offloaded = NEED.sharded("zero3-offload", 4)
    assert (offloaded.total, offloaded.host) == (100, 4 * 500)


def test_a_rank_of_four_holds_its_share_of_ppo_s_models_and_draws_with_the_whole_policy() -> None:
    assert PPO.total == 1600 + 1600 + 400 + 800 + 100
    assert PPO.sharded("ddp", 4).total == PPO.total  # it reduces one gradient after the other
    assert PPO.sharded("zero2", 4).total == 1600 + 600 + 400 + 200 + 100
    share = PPO.sharded("zero3", 4)
    assert share.permanent == 400 + 600 + 100
    assert share.gathered == 300  # the three quarters of the policy that it does not hold
    assert share.total == share.permanent + 200 + 50 + 300  # drawing is the peak, not the update
    assert PPO.sharded("fsdp2", 4).permanent == 400 + 400 + 100


def test_the_simplest_way_that_fits_is_advised() -> None:
    placements = [placement(NEED, room, devices=4) for room in (1700, 1000, 600, 150)]
    ways = [None if one is None else (one.how, one.ranks) for one in placements]
    assert ways == [("none", 1), ("zero2", 4), ("zero3", 4), ("zero3-offload", 4)]
    assert placement(NEED, 99, devices=4) is None


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1.3b", "6b", "175b"])
def test_the_presets_are_estimated_without_a_hub_and_name_the_source_of_their_lengths(size: str):
    text = "\n".join(estimate_lines(load_config(ROOT / f"configs/instructgpt/{size}.yaml")))
    assert "counts and lengths of the paper" in text
    for stage in ("sft", "reward", "ppo-init", "ppo", "ppo-ptx"):
        assert f"\n{stage}: " in text, stage


def test_every_stage_of_an_experiment_has_an_estimate(tmp_path: Path) -> None:
    lines = list(estimate_lines(load_config(world(tmp_path))))
    for stage in ("sft", "reward", "ppo", "ppo-ptx"):
        assert f"{stage}: fits as it is" in lines, stage
    assert any(line.startswith("Disk: ") for line in lines)
    assert not any("of the paper" in line for line in lines)


def test_restricting_a_run_takes_gradients_and_moments_away(tmp_path: Path) -> None:
    config = load_config(world(tmp_path))
    sizes = lengths(config)
    full, lora = (
        stage_estimates(config, sizes),
        stage_estimates(with_values(config, LORA[1]), sizes),
    )
    for whole, light in zip(full, lora, strict=True):
        assert light.memory.gradients < 0.2 * whole.memory.gradients
        assert light.memory.optimizer == 2 * light.memory.gradients
        assert light.flops < whole.flops
        assert light.disk < whole.disk


def test_a_7b_model_and_a_full_1b_model_fit_a_card_of_24_gib(tmp_path: Path) -> None:
    """LoRA of rank 16 on one backbone, 250 + 256 tokens, an episode at a time."""
    light = {"activation_checkpointing": True}
    config = with_values(one_card(tmp_path, "Qwen/Qwen2.5-7B"), LORA[1], light)
    peaks = gib(config)
    assert peaks["ppo"] <= 20.0
    assert max(peaks["sft"], peaks["reward"]) <= 18.0
    peaks = gib(with_values(config, {"precision": {"weights": "nf4"}}))
    assert peaks["ppo"] <= 12.0
    assert max(peaks["sft"], peaks["reward"]) <= 10.0
    light |= {"optimizer": "adamw_8bit", "precision": {"masters": "stochastic"}}
    config = with_values(one_card(tmp_path, "meta-llama/Llama-3.2-1B"), light)
    assert gib(config)["ppo"] <= 24.0


def test_what_is_advised_gets_smaller_and_says_what_to_write(tmp_path: Path) -> None:
    config = load_config(world(tmp_path, hidden=512))
    words, smallest = list(smaller(config))[-1]
    assert words == (
        "adaptation: {family: lora}, activation_checkpointing: true and precision: {weights: nf4}"
    )
    assert gib(smallest)["ppo"] < 0.2 * gib(config)["ppo"]
    lines = list(estimate_lines(config, gpu_gib=0.95))
    assert "a GPU of 0.95 GiB: 0.364 GiB free" in lines
    verdict = next(n for n, line in enumerate(lines) if line.startswith("ppo: does not fit ("))
    assert lines[verdict + 1].startswith(
        "    with activation_checkpointing: true and optimizer: adamw_8bit (0."
    )
    assert lines[verdict + 2].startswith("    with --sharding zero")
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.parametrize("adaptation", [Full(), LoRA()])
def test_joint_passes_take_the_critic_and_the_reward_model_away(
    tmp_path: Path, adaptation: Full | LoRA
) -> None:
    config = load_config(world(tmp_path))
    sizes, joint = lengths(config), jointly(config, adaptation)
    assert joint.ppo is not None
    apart = joint.model_copy(
        update={"ppo": joint.ppo.model_copy(update={"models": SeparateModels()}), "ppo_ptx": None}
    )
    (four,) = (one for one in stage_estimates(apart, sizes) if one.memory.stage == "ppo")
    (two,) = (one for one in stage_estimates(joint, sizes) if one.memory.stage == "ppo")
    assert two.flops < 0.8 * four.flops
    assert two.memory.reward < 0.01 * two.memory.weights
    # Of a full fine-tuned policy the probe's frozen transformer is another model's.
    assert (two.memory.reward < four.memory.reward) == isinstance(adaptation, Full)


def jointly(config: ExperimentConfig, adaptation: Full | LoRA) -> ExperimentConfig:
    """The experiment with PPO in joint passes and the reward model they take."""
    mapping = config.model_dump(mode="json")
    mapping["ppo"] |= {
        "models": {"kind": "joint"},
        "adaptation": adaptation.model_dump(mode="json"),
    }
    mapping["reward"]["adaptation"] = {"family": "probe"}
    return ExperimentConfig.model_validate(
        mapping | {"reward_base": "sft", "sft_choice": "loss", "ppo_ptx": None}
    )


def test_lengths_are_counted_with_the_base_s_tokenizer(tmp_path: Path) -> None:
    counted = lengths(load_config(world(tmp_path)))
    demonstrations = tiny_demonstrations(64, random.Random(0))
    words = [len(f"{one.prompt} {one.response}".split()) + 1 for one in demonstrations]  # and EOS
    assert counted.demonstrations.count == 64
    assert counted.demonstrations.longest == pytest.approx(max(words), abs=1)
    assert not counted.demonstrations.assumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "family"),
    [
        ("sft", "full"),
        ("reward", "full"),
        ("ppo", "full"),
        ("ppo-ptx", "full"),
        ("sft", "lora"),
        ("ppo", "lora"),
        ("ppo", "joint"),
    ],
)
def test_the_estimated_peak_is_that_of_a_real_run(stage: str, family: str, tmp_path: Path) -> None:
    config_path = world(tmp_path, hidden=512, layers=6)
    config = load_config(config_path)
    if family == "lora":
        config = with_values(config, LORA[1])
    elif family == "joint":
        config = jointly(config, Full())
    if family != "full":
        config_path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    estimates = stage_estimates(config, lengths(config))
    estimated = {one.memory.stage: one.memory.total for one in estimates}
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), stage, str(config_path), config.model, str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    measured = int(done.stdout.split()[-1])
    ratio = estimated[stage] / measured
    print(f"{stage} {family}: estimated / measured {ratio:.2f}, measured {measured >> 20} MiB")
    assert 1 / WITHIN < ratio < WITHIN


def world(folder: Path, *, hidden: int = 16, layers: int = 2) -> Path:
    """A base of some size with data for every stage, and the experiment's config."""
    rng = random.Random(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                hidden_size=hidden,
                intermediate_size=int(2.7 * hidden),
                num_hidden_layers=layers,
                num_attention_heads=8,
                eos_token_id=1,
                pad_token_id=0,
                max_position_embeddings=512,
                bos_token_id=None,
            )
        )
    model.save_pretrained(str(folder / "base"))
    tiny_tokenizer().save_pretrained(str(folder / "base"))
    tasks = tiny_tasks(16, rng)
    demonstrations = tiny_demonstrations(64, random.Random(0))
    write_jsonl(folder / "demonstrations.jsonl", (one.to_json() for one in demonstrations))
    ppo_prompts = [records.Prompt(" ".join(rng.choices(WORDS, k=60))) for _ in range(16)]
    write_jsonl(folder / "ppo_prompts.jsonl", (one.to_json() for one in ppo_prompts))
    ranked = [records.Prompt(task.prompt) for task in tasks]
    write_jsonl(folder / "ranking_prompts.jsonl", (one.to_json() for one in ranked))
    write_jsonl(folder / "tasks.jsonl", (task.to_json() for task in tasks))
    rankings = tiny_rankings(tasks, ["a"], rng)
    write_jsonl(folder / "rankings.jsonl", (one.to_json() for one in rankings))
    texts = [{"text": " ".join(rng.choices(WORDS, k=150))} for _ in range(20)]
    write_jsonl(folder / "texts.jsonl", texts)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(settings(folder)))
    return path


def settings(folder: Path) -> dict[str, object]:
    ppo = {
        "episodes": 16,
        "episodes_per_rollout": 8,
        "minibatch": 4,
        "learning_rate": 1e-5,
        "micro_batch_size": 4,  # else the least is foretold, and what is free is used
        "sampling": {"max_new_tokens": 30, "batch_size": 8},
        "health": {"action": "warn"},
    }
    mix = {"examples_per_episode": 1, "tokens_per_example": 128}
    return {
        "name": "measured",
        "model": str(folder / "base"),
        "reward_base": "base",
        "data": {
            "kind": "files",
            "demonstrations": str(folder / "demonstrations.jsonl"),
            "ranking_prompts": str(folder / "ranking_prompts.jsonl"),
            "ppo_prompts": str(folder / "ppo_prompts.jsonl"),
            "pretraining_texts": str(folder / "texts.jsonl"),
            "test_prompts": str(folder / "ppo_prompts.jsonl"),
        },
        "labeling": {"kind": "human"},
        "sampling": {"responses": [3, 5], "settings": [{"max_new_tokens": 8}]},
        "sft": {"epochs": 2, "batch_size": 16, "dropout": 0.0, "max_tokens": 256},
        "reward": {"prompts_per_batch": 8, "micro_prompts": 8, "max_tokens": 256},
        "ppo": ppo,
        "ppo_ptx": {**ppo, "pretraining": mix},
    }
