"""A run starts from models made elsewhere: at rankings, at the reward model, or at PPO."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.estimate.doctor import estimate_lines
from pipeline.models.policies import policy_folder
from pipeline.runs.manifest import QUICKSTART, Manifest
from pipeline.steps.evaluate import Evaluate
from pipeline.steps.order import experiment_stages, run_experiment
from tests.stages.classifiers import gpt2_classifier

ROOT = Path(__file__).parents[3]
SMALL = [
    "threads=1",
    "sft=null",
    "ppo.episodes=32",
    "ppo.episodes_per_rollout=16",
    "ppo.minibatch=16",
    "ppo.checkpoint_every=1",
    "ppo.overoptimization=null",
    "ppo.sampling.max_new_tokens=8",
    "evaluation.sampling.max_new_tokens=8",
    "ppo_ptx=null",
    "baselines=[{kind: best_of_n, n: 2}]",
    "evaluation.suites=[preference]",
    "evaluation.resamples=50",
    "evaluation.sign_flips=50",
    "data.sizes={demonstrations: 16, ranking_prompts: 24, ppo_prompts: 32, validation_prompts: 8, "
    "test_prompts: 4, toxicity_prompts: 4, pretraining_texts: 8, held_out_texts: 4}",
]


def config(*sets: str) -> ExperimentConfig:
    return load_config(ROOT / "configs/quickstart.yaml", [*SMALL, *sets])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the quickstart's base, as PEFT and TRL's SFTTrainer save one: without base.json."""
    folder = tmp_path_factory.mktemp("peft")
    base = AutoModelForCausalLM.from_pretrained(str(QUICKSTART / "base"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(base, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    return gpt2_classifier(folder, initializer_range=0.3, n_positions=2048)


@pytest.fixture(scope="module")
def started_at_ppo(
    adapter: Path, reward: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentConfig, Path]:
    """A run of an adapter of PEFT against a reward model of another family, with a report."""
    chosen = config(
        f"policy={adapter}",
        "reward=null",
        f"reward_model={reward}",
        "ppo.adaptation={family: lora, rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}",
    )
    run = tmp_path_factory.mktemp("run") / "run"
    run_experiment(chosen, run)
    return chosen, run


def test_a_run_from_others_policy_and_reward_goes_to_its_report(
    started_at_ppo: tuple[ExperimentConfig, Path], adapter: Path, reward: Path
) -> None:
    chosen, run = started_at_ppo
    names = [stage.name for stage in experiment_stages(chosen, run)]
    assert names == ["data", "ppo", "best-of-2", "evaluate", "report"]
    made = Manifest.read(run / "ppo/manifest.json")
    assert made is not None
    assert made.inputs["policy"].path == str(adapter)
    assert made.inputs["base of policy"].path == str(QUICKSTART / "base")
    assert made.inputs["reward"].path == str(reward)
    assert made.labels == []
    results = json.loads((run / "evaluate/results.json").read_text())
    assert results["scorers"]["reward model"]["version"] == str(reward)
    assert (run / "report/report.html").is_file()
    assert policy_folder(run) == run / "ppo/model"
    base = json.loads((run / "ppo/model/base.json").read_text())
    assert base["name"] == "package:pipeline/quickstart/base"


def test_the_same_command_again_finds_everything_up_to_date_and_a_stopped_one_goes_on(
    started_at_ppo: tuple[ExperimentConfig, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    chosen, run = started_at_ppo
    weights = run / "ppo/model/adapter_model.safetensors"
    before = weights.read_bytes()
    run_experiment(chosen, run)
    assert capfd.readouterr().err.count("up to date") == 5
    (run / "ppo/manifest.json").unlink()
    newest = sorted((run / "ppo/checkpoints").glob("*2*"))
    assert newest
    for path in newest:  # as after a kill in the second iteration
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run / "ppo/model")
    run_experiment(chosen, run, until="ppo")
    assert "resumes" in capfd.readouterr().err
    assert weights.read_bytes() == before


def test_stages_that_are_left_out_follow_from_the_config(tmp_path: Path) -> None:
    def names(*sets: str) -> list[str]:
        return [stage.name for stage in experiment_stages(config(*sets), tmp_path)]

    policy = f"policy={tmp_path}"
    assert names(policy)[:5] == ["data", "sample", "label", "reward", "ppo"]
    pairs = "labeling={kind: imported, tasks: a, rankings: b}"
    assert names(policy, pairs)[:4] == ["data", "label", "reward", "ppo"]
    trained = ("sft={epochs: 1}", "reward=null", f"reward_model={tmp_path}")
    assert names(*trained)[:4] == ["data", "sft", "select", "ppo"]
    assert "base" in Evaluate(config(policy), tmp_path).policies
    assert "base" not in Evaluate(config("policy=quickstart"), tmp_path).policies


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    policy, reward = f"policy={tmp_path}", f"reward_model={tmp_path}"
    files = "data={kind: files, test_prompts: t, ppo_prompts: p}"
    for sets, message in (
        ((), "sft is null and policy is not set; expected in policy the folder"),
        (("sft={}", policy), "policy is .* but sft is not null"),
        ((policy, "reward=null"), "reward is null and reward_model is not set"),
        ((policy, reward), "reward_model is .* but reward is not null"),
        ((policy, "ppo_init={}"), "sft is null but ppo_init is set"),
        (
            (policy, "reward=null", reward, "labeling={kind: human}"),
            "reward is null but labeling.kind is human",
        ),
        ((policy, "reward=null", reward, "rounds=2"), "reward is null but rounds is 2"),
        (("sft={}", files, "labeling={kind: human}"), "data.demonstrations is missing: sft"),
        ((policy, files, "labeling={kind: human}"), "data.ranking_prompts is missing"),
        (
            (policy, "baselines=[{kind: instruction_tuned, held_out: [a]}]"),
            "baseline instruction_tuned needs an sft of its own",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            config(*sets)


def test_a_model_that_cannot_score_is_refused_before_anything_is_written(
    adapter: Path, tmp_path: Path
) -> None:
    three = gpt2_classifier(tmp_path / "three", labels=3)
    chosen = config(f"policy={adapter}", "reward=null", f"reward_model={three}")
    with pytest.raises(ValueError, match="it has 3 labels; a reward model has one"):
        run_experiment(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_doctor_counts_what_is_left(reward: Path) -> None:
    chosen = config("policy=quickstart", "reward=null", f"reward_model={reward}")
    lines = "\n".join(estimate_lines(chosen))
    assert f"reward model {reward}" in lines
    assert "ppo: fits as it is" in lines
    assert "sft" not in lines


def test_an_adapter_without_a_hash_logs_its_base_and_takes_its_tokenizer(
    adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from stages import models

    models._log_base.cache_clear()
    with caplog.at_level("INFO"):
        policy, _ = models.load_policy(adapter), models.load_policy(adapter)
    assert caplog.text.count("has no base.json: its base is") == 1
    base = AutoTokenizer.from_pretrained(str(QUICKSTART / "base"))
    assert models.load_tokenizer(adapter).get_vocab() == base.get_vocab()
    assert vars(policy.peft_config["default"])["r"] == 4
