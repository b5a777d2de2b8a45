"""The benchmark measures what it says: same losses on both sides, end rates as asked, ratios."""

from pathlib import Path

import pytest
import torch

from stages import precision
from tests.benchmarks.alternate import Worker, alternate, ratio
from tests.benchmarks.cases import END, PAD, Case, Shape, load_policy_of, make_policy, prompts
from tests.benchmarks.flops import backbone
from tests.benchmarks.ppo.ours import new_run
from tests.benchmarks.reward.case import RewardCase

TINY = Shape(vocabulary=200, hidden=32, inner=64, layers=2, heads=4, kv_heads=2)


def test_responses_end_as_often_as_the_mean_length_asks(tmp_path: Path):
    case = Case("tiny", TINY, mean_response=10)
    make_policy(case, tmp_path)
    model = load_policy_of(tmp_path)
    with torch.no_grad():
        logits = model(torch.tensor([prompts(case, 1)[0]])).logits[0]
    probability = logits.softmax(-1)
    assert probability[:, END].mean() == pytest.approx(0.1, abs=0.03)
    assert probability[:, PAD].max() < 1e-6


def test_the_trunk_is_counted_as_transformers_counts_it(tmp_path: Path):
    make_policy(Case("tiny", TINY), tmp_path)
    layers = load_policy_of(tmp_path).model.layers
    assert backbone(TINY) == sum(p.numel() for p in layers.parameters() if p.dim() == 2)


def test_ratios_are_taken_pair_by_pair():
    rows = {"a": [{"cpu_s": 1.0}, {"cpu_s": 2.0}], "b": [{"cpu_s": 3.0}, {"cpu_s": 4.0}]}
    assert ratio(rows, "a", "b") == {"median": 2.5, "worst": 2.0, "best": 3.0}


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_our_side_computes_in_the_precision_that_the_verb_resolves(native, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_native", lambda _: native)
    case = Case("tiny", TINY, lora_rank=2, episodes=4, minibatch=4, micro=2, response_limit=4)
    make_policy(case, tmp_path / "policy")
    models = new_run(case, tmp_path).models
    frozen = [p.dtype for p in models.policy.parameters() if not p.requires_grad]
    assert set(frozen) == {native}
    assert models.numerics.compute == native


@pytest.mark.slow  # two processes that import trainers
def test_both_layouts_and_trl_compute_the_same_loss_and_gradient(tmp_path: Path):
    case = RewardCase("tiny", TINY, responses=4, prompt=8, response=5)
    case.write(tmp_path / "case.json")
    make_policy(Case("tiny", TINY), tmp_path / "policy")
    layouts = "tests.benchmarks.reward.layouts"
    rows = alternate(
        [
            Worker("shared", layouts, arguments=("shared",)),
            Worker("separate", layouts, arguments=("separate",)),
            Worker("trl", "tests.benchmarks.reward.peer"),
        ],
        tmp_path,
        pairs=2,
        warm_up=0,
    )
    for shared, separate, trl in zip(rows["shared"], rows["separate"], rows["trl"], strict=True):
        for other in (separate, trl):
            assert shared["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert shared["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
