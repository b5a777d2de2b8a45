"""A reward model scores the same after saving, in any batch, under any padding."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from reward_models.model import RewardModel, last_real
from tests.reward_models.tiny import tiny_base, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path) -> RewardModel:
    return RewardModel.from_base(base, seed=1)


def padded(sequences: list[list[int]], length: int, *, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, masks, position_rows = [], [], []
    for ids in sequences:
        empty = length - len(ids)
        real, fill = [True] * len(ids), [False] * empty
        counted = list(range(len(ids)))
        rows.append([0] * empty + ids if left else ids + [0] * empty)
        masks.append(fill + real if left else real + fill)
        position_rows.append([0] * empty + counted if left else counted + [0] * empty)
    return torch.tensor(rows), torch.tensor(masks), torch.tensor(position_rows)


SEQUENCES = [[5, 6, 7, 1], [8, 3, 9, 10, 11, 1], [4, 1]]


def alone(model: RewardModel) -> Tensor:
    return torch.cat([model(*padded([ids], len(ids), left=False)) for ids in SEQUENCES])


def with_adapter(base: Path) -> RewardModel:
    causal = AutoModelForCausalLM.from_pretrained(str(base))
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return RewardModel.on(get_peft_model(causal, lora), 1, base=str(base))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("length", [6, 11])
def test_a_score_does_not_depend_on_padding_or_batch(model: RewardModel, left: bool, length: int):
    together = model(*padded(SEQUENCES, length, left=left))
    assert torch.allclose(together, alone(model), atol=1e-5)


def test_the_score_is_the_value_at_the_last_real_token(model: RewardModel) -> None:
    inputs = padded(SEQUENCES, 8, left=False)
    value_BL = model.values(*inputs)
    last_B = value_BL[torch.arange(3), torch.tensor([3, 5, 1])]
    assert torch.allclose(model(*inputs), last_B, atol=1e-6)


def test_the_last_real_token_is_found_under_left_and_right_padding() -> None:
    mask_BL = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert last_real(mask_BL).tolist() == [3, 1, 3]


def test_scores_at_chosen_positions_equal_the_values_there(model: RewardModel) -> None:
    ids_BL, mask_BL, positions_BL = padded(SEQUENCES[:2], 6, left=False)
    last_BK = torch.tensor([[3, 1], [5, 2]])
    reward_BK = model(ids_BL, mask_BL, positions_BL, last_BK)
    expected_BK = model.values(ids_BL, mask_BL, positions_BL).gather(1, last_BK)
    assert torch.allclose(reward_BK, expected_BK, atol=1e-5)


def test_the_id_of_padding_does_not_matter(model: RewardModel) -> None:
    ids_BL, mask_BL, positions_BL = padded(SEQUENCES, 8, left=False)
    beyond_the_vocabulary_BL = ids_BL.masked_fill(~mask_BL, 9999)
    assert torch.equal(
        model(beyond_the_vocabulary_BL, mask_BL, positions_BL), model(ids_BL, mask_BL, positions_BL)
    )


def test_dropout_is_off_in_training_mode_too(model: RewardModel) -> None:
    before = alone(model)
    model.train()
    assert torch.equal(alone(model), before)


def test_the_head_starts_with_the_deviation_of_one_over_root_d_plus_one(base: Path) -> None:
    drawn = [RewardModel.from_base(base, seed).head.weight for seed in range(60)]
    deviation = torch.cat(drawn).std().item()
    assert deviation == pytest.approx(1 / math.sqrt(17), rel=0.1)
    assert RewardModel.from_base(base, 0).bias.item() == 0.0


def test_the_head_depends_on_the_seed_alone(base: Path) -> None:
    first, again = RewardModel.from_base(base, 3), RewardModel.from_base(base, 3)
    other = RewardModel.from_base(base, 4)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_bias_moves_every_score_and_gets_no_gradient(model: RewardModel) -> None:
    before = alone(model)
    model.set_bias(0.75)
    assert torch.allclose(alone(model), before - 0.75)
    alone(model).sum().backward()
    assert model.bias.grad is None


def test_a_loaded_model_gives_equal_scores_in_a_new_process(model: RewardModel, tmp_path: Path):
    model.set_bias(0.1)
    model.save(tmp_path / "rm", tiny_tokenizer())
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from reward_models.model import RewardModel\n"
        "ids = torch.tensor([[5, 6, 7, 1]]); mask = ids > 0\n"
        "model = RewardModel.load(sys.argv[1])\n"
        "print(model(ids, mask, torch.arange(4)[None]).item().hex())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rm")],
        capture_output=True,
        text=True,
        check=True,
    )
    here = model(*padded(SEQUENCES[:1], 4, left=False)).item()
    assert float.fromhex(ran.stdout.split()[-1]) == here


def test_head_and_bias_are_not_drawn_again_on_load(model: RewardModel, tmp_path: Path) -> None:
    model.set_bias(-0.3)
    model.save(tmp_path / "rm")
    torch.manual_seed(123)
    loaded = RewardModel.load(tmp_path / "rm")
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert torch.equal(loaded.bias, model.bias)
    assert torch.equal(alone(loaded), alone(model))


def test_an_adapter_is_saved_alone_and_scores_the_same(base: Path, tmp_path: Path) -> None:
    model = with_adapter(base)
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm")
    assert not (tmp_path / "rm" / "model.safetensors").exists()
    assert torch.equal(alone(loaded), alone(model))
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora" not in name} == {"head.weight"}


def test_an_adapter_refuses_a_base_that_has_changed(tmp_path: Path) -> None:
    moved = tiny_base(tmp_path / "base")
    with_adapter(moved).save(tmp_path / "rm")
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1.0
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="only fits the weights it was trained on"):
        RewardModel.load(tmp_path / "rm")


def test_an_adapter_trained_beside_an_added_pad_loads_on_the_base_without_it(
    base: Path, tmp_path: Path
) -> None:
    causal = AutoModelForCausalLM.from_pretrained(str(base))
    causal.resize_token_embeddings(26, mean_resizing=False)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = RewardModel.on(get_peft_model(causal, lora), 1, base=str(base))
    model.save(tmp_path / "rm")
    assert torch.equal(alone(RewardModel.load(tmp_path / "rm")), alone(model))


def test_saving_over_a_model_and_over_a_half_written_one_leaves_the_new_one(
    model: RewardModel, tmp_path: Path
) -> None:
    (tmp_path / "rm.part").mkdir()
    (tmp_path / "rm.part" / "stale").write_text("half")
    model.save(tmp_path / "rm")
    model.set_bias(2.0)
    model.save(tmp_path / "rm")
    assert RewardModel.load(tmp_path / "rm").bias.item() == -2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rm"]


def test_a_folder_without_a_card_is_not_a_reward_model(base: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a reward model: it has no reward\.json"):
        RewardModel.load(base)


def test_a_card_without_a_bias_is_refused_in_one_line(model: RewardModel, tmp_path: Path) -> None:
    model.save(tmp_path / "rm")
    (tmp_path / "rm" / "reward.json").write_text('{"base": "x"}')
    with pytest.raises(ValueError, match=r"reward\.json: not the card of a reward model"):
        RewardModel.load(tmp_path / "rm")


def test_a_policy_with_another_tokenizer_is_refused_with_both_hashes(model: RewardModel) -> None:
    model.record_training("3f2a" * 16, {"human"})
    model.card.require_tokenizer("3f2a" * 16, "runs/sft-1")
    with pytest.raises(ValueError, match=r"3f2a3f2a.*runs/sft-3 uses 91bc91bc"):
        model.card.require_tokenizer("91bc" * 16, "runs/sft-3")


def test_the_card_tells_who_made_the_labels(model: RewardModel, tmp_path: Path) -> None:
    model.record_training("ab", {"simulated", "human"})
    model.save(tmp_path / "rm")
    assert RewardModel.load(tmp_path / "rm").card.label_kinds == ("human", "simulated")


def test_a_missing_base_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model there"):
        RewardModel.from_base(tmp_path, seed=0)
