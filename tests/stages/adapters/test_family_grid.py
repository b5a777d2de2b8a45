"""Every family in every stage on every architecture: it learns, it is saved, it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from reward_models.model import RewardModel
from stages.adapters.backbone import copy_sharing_frozen
from stages.data.padding import pad_right, positions
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.models import adapt, load_policy, load_tokenizer, trainable_parameters
from stages.ppo.models import load_models
from tests.stages.adapters.family_cells import (
    ARCHITECTURES,
    FAMILIES,
    VARIANTS,
    Cell,
    Listener,
    PowerCutError,
    save_base,
)

SEQUENCES = [[5, 6, 7], [8, 3, 9, 10, 11, 4], [4]]
ROOT = Path(__file__).parents[3]
LOOK = """
import sys, torch
from tests.stages.adapters.test_family_grid import policy_logits, reward_scores
from pathlib import Path
folders = [Path(line.strip()) for line in sys.stdin]
torch.set_num_threads(1)
torch.save({str(f): (policy_logits(f / "sft/model"), reward_scores(f / "reward/model"),
                     policy_logits(f / "ppo/model")) for f in folders}, sys.argv[1])
"""

_FAST = [("llama", family) for family in FAMILIES] + [("gpt2", "bitfit"), ("qwen3", "prefix")]
_RESUMED = [("llama", "probe"), ("llama", "prompt"), ("gpt2", "bitfit"), ("qwen3", "prefix")]
_ALL = [(kind, family) for kind in ARCHITECTURES for family in {**FAMILIES, **VARIANTS}]


def _grid(fast: list[tuple[str, str]]) -> list[ParameterSet]:
    """All cells, the rest of them marked slow."""
    return [
        pytest.param(cell, id="-".join(cell), marks=() if cell in fast else pytest.mark.slow)
        for cell in _ALL
    ]


CELLS = _grid(_FAST)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cell]:
    folder = tmp_path_factory.mktemp("grid")
    bases = {kind: save_base(kind, folder / kind) for kind in ARCHITECTURES}
    known = {**FAMILIES, **VARIANTS}
    return {
        (kind, name): Cell(bases[kind], known[name], folder / f"{kind}-{name}")
        for kind, name in _ALL
    }


@pytest.fixture
def cell(cells: dict[tuple[str, str], Cell], request: pytest.FixtureRequest) -> Cell:
    return cells[request.param]


def padded(left: bool, extra: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rows = [row[::-1] for row in SEQUENCES] if left else SEQUENCES
    ids_BL, mask_BL = pad_right([*rows, [2] * (6 + extra)], pad_id=0)
    ids_BL, mask_BL = ids_BL[:-1], mask_BL[:-1]
    if left:
        ids_BL, mask_BL = ids_BL.flip(1), mask_BL.flip(1)
    return ids_BL, mask_BL, positions(mask_BL)


def logits_of(model: torch.nn.Module, left: bool, extra: int = 0) -> Tensor:
    """logits_NV at the real tokens."""
    ids_BL, mask_BL, positions_BL = padded(left, extra)
    with torch.no_grad():
        output = model(input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=positions_BL)
    logits: Tensor = output.logits[mask_BL]
    return logits


def policy_logits(folder: Path) -> Tensor:
    return logits_of(load_policy(folder), left=False)


def reward_scores(folder: Path) -> Tensor:
    with torch.no_grad():
        scores: Tensor = RewardModel.load(folder)(*padded(left=False))
    return scores


def same_files(one: Path, other: Path) -> None:
    """All weights below two folders are equal, bit by bit."""
    names = {path.name for path in one.glob("*.safetensors")}
    assert names
    assert names == {path.name for path in other.glob("*.safetensors")}
    for name in names:
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_losses_fall_in_the_first_two_stages(cell: Cell) -> None:
    supervised = cell.steps("sft").of("sft/loss_nats_per_token")
    assert sum(supervised[-3:]) < 0.98 * sum(supervised[:3])
    ranking = cell.steps("reward").of("reward/loss_nats_per_pair")
    assert sum(ranking[-4:]) < 0.98 * sum(ranking[:4])


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_ppo_starts_at_kl_zero_and_moves_the_policy(cell: Cell) -> None:
    kl = cell.steps("ppo").of("ppo/kl_nats")
    assert kl[0] == 0.0
    assert kl[-1] != 0.0  # an estimate may be below 0
    assert not torch.equal(
        policy_logits(cell.trained("ppo") / "model"), policy_logits(cell.trained("sft") / "model")
    )


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_a_restricted_run_leaves_the_set_alone_on_disk_and_the_base_as_it_was(cell: Cell) -> None:
    if cell.adaptation.family == "full":
        pytest.skip("all of it moves")
    base = load_file(cell.base / "model.safetensors")
    for folder in (cell.trained("sft") / "model", cell.trained("ppo") / "model"):
        assert not (folder / "model.safetensors").exists()
        loaded = load_policy(folder)
        assert isinstance(loaded, PeftModel)
        held = {name.replace(".base_layer", ""): p for name, p in loaded.named_parameters()}
        for name, weight in base.items():
            assert torch.equal(held[f"base_model.model.{name}"], weight), name
        adapted = adapt(loaded, cell.adaptation, load_tokenizer(folder))
        saved = load_file(folder / "adapter_model.safetensors")
        moved = sum(tensor.numel() for tensor in saved.values())
        assert moved == trainable_parameters(adapted)
        assert json.loads((folder / "base.json").read_text())["adapter_parameters"] == moved
    assert not (cell.trained("reward") / "model" / "model.safetensors").exists()
    card = json.loads((cell.trained("reward") / "model" / "reward.json").read_text())
    assert card["base"] == str(cell.base.resolve())
    assert size_of(cell.trained("reward") / "model") < size_of(cell.base)


def test_a_fresh_process_reads_every_stage_alike(
    cells: dict[tuple[str, str], Cell], tmp_path: Path
) -> None:
    trained = [cell for cell in cells.values() if "ppo" in cell.reports]
    chosen = trained or [cells["llama", "prefix"]]
    folders = [cell.trained("ppo").parent for cell in chosen]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "seen.pt")],
        cwd=ROOT,
        input="\n".join(map(str, folders)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = torch.load(tmp_path / "seen.pt")
    for folder in folders:
        here = (
            policy_logits(folder / "sft/model"),
            reward_scores(folder / "reward/model"),
            policy_logits(folder / "ppo/model"),
        )
        assert all(torch.equal(a, b) for a, b in zip(here, seen[str(folder)], strict=True)), folder


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_padding_on_the_left_changes_nothing(cell: Cell) -> None:
    policy = load_policy(cell.trained("sft") / "model")
    expected = logits_of(policy, left=False)
    assert torch.allclose(logits_of(policy, left=True), expected, atol=1e-5)
    assert torch.allclose(logits_of(policy, left=True, extra=5), expected, atol=1e-5)
    reward = RewardModel.load(cell.trained("reward") / "model")
    with torch.no_grad():
        right, left = reward(*padded(left=False)), reward(*padded(left=True, extra=3))
    assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_generate_with_a_cache_equals_generate_without(cell: Cell) -> None:
    policy = load_policy(cell.trained("sft") / "model")
    ids_BL, mask_BL, _ = padded(left=True)
    drawn = [
        policy.generate(  # type: ignore[operator]
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            max_new_tokens=8,
            do_sample=False,
            use_cache=cached,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for cached in (True, False)
    ]
    assert torch.equal(drawn[0].sequences, drawn[1].sequences)
    for with_cache, without in zip(drawn[0].logits, drawn[1].logits, strict=True):
        assert torch.allclose(with_cache, without, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_activation_checkpointing_gives_the_same_gradients(cell: Cell) -> None:
    ids_BL, mask_BL, positions_BL = padded(left=True)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = adapt(load_policy(cell.base), cell.adaptation, load_tokenizer(cell.base))
        if checkpointing:
            checkpoint_activations(model)
        for _ in range(2):  # as accumulated micro-batches
            output = model(
                input_ids=ids_BL,
                attention_mask=mask_BL.long(),
                position_ids=positions_BL,
                use_cache=False,
            )
            output.logits[mask_BL].log_softmax(-1)[:, 5].sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("cell", _grid(_RESUMED), indirect=True)
def test_a_run_that_was_cut_off_ends_bit_equal(cell: Cell, stage: str) -> None:
    out = cell.folder / f"broken-{stage}"
    with pytest.raises(PowerCutError):
        cell.run(stage, out, Listener(cut_after=3 if stage == "ppo" else 5))
    cell.run(stage, out, Listener())
    whole = cell.trained(stage)
    same_files(out / "model", whole / "model")
    if stage == "ppo":
        same_files(out / "critic", whole / "critic")


@pytest.mark.parametrize("cell", CELLS, indirect=True)
def test_restricted_roles_hold_one_base_in_memory_and_load_it_once(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cell.adaptation.family == "full":
        pytest.skip("separate copies")
    trained = (cell.trained("sft") / "model", cell.trained("reward") / "model")
    monkeypatch.delattr(
        "reward_models.backbone.load_causal_lm"
    )  # it would load the reward model's base
    models = load_models(*trained, cell.adaptation, seed=0, device=torch.device("cpu"))
    roles: list[torch.nn.Module] = [models.policy, models.reference, models.critic, models.reward]
    held = {p.data_ptr(): p.numel() for role in roles for p in role.parameters()}
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(str(cell.base)).parameters())
    own = sum(trainable_parameters(role) for role in (models.policy, models.critic))
    head = sum(p.numel() for p in models.reward.head.parameters()) + 1
    assert sum(held.values()) <= base + 2 * own + 2 * head


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "full"])
def test_a_twin_of_a_frozen_model_that_was_read_says_the_same(
    cells: dict[tuple[str, str], Cell], name: str
) -> None:
    cell = cells["llama", name]
    model = adapt(load_policy(cell.base), cell.adaptation, load_tokenizer(cell.base))
    model.requires_grad_(False)
    expected = logits_of(model, left=False)
    assert torch.equal(logits_of(copy_sharing_frozen(model), left=False), expected)
    assert torch.equal(logits_of(model, left=False), expected)


def test_plain_peft_loads_the_folders_once_the_package_is_imported(
    cells: dict[tuple[str, str], Cell],
) -> None:
    for name in [name for name in FAMILIES if name != "full"]:
        cell = cells["llama", name]
        folder = cell.trained("sft") / "model"
        base = AutoModelForCausalLM.from_pretrained(str(cell.base))
        loaded = PeftModel.from_pretrained(base, str(folder)).eval()
        assert torch.equal(logits_of(loaded, left=False), policy_logits(folder)), name
