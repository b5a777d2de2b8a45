"""Training of the last layers alone: trained and shared parameters, and the way of gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.adapters.backbone import layers_of
from stages.adapters.config import Full
from stages.distributed.network import trained_parameters
from stages.models import adapt, load_policy
from tests.stages.ppo.tiny_ppo import tiny_config, tiny_models, tiny_world, train

TOP = {"family": "full", "top_layers": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("top"))


def test_the_last_layer_alone_moves_and_no_gradient_goes_below_it(world: tuple[Path, Path]) -> None:
    model = adapt(load_policy(world[0]), Full(top_layers=1))
    last = len(layers_of(model)) - 1
    assert last > 0
    assert {name.split("layers.")[1][0] for name in trained_parameters(model)} == {str(last)}
    entered = []
    layers_of(model)[last].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert not entered[0].requires_grad


def test_more_layers_than_there_are_is_refused(world: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"adaptation.top_layers is 9, the model has 2 layers"):
        adapt(load_policy(world[0]), Full(top_layers=9))


def test_four_roles_hold_the_layers_that_stay_once(world: tuple[Path, Path]) -> None:
    models = tiny_models(world, tiny_config(adaptation=TOP))
    roles: list[torch.nn.Module] = [models.policy, models.reference, models.critic, models.reward]
    addresses = [
        {p.data_ptr() for name, p in role.named_parameters() if "layers.0." in name}
        for role in roles
    ]
    assert addresses[0]
    assert all(address == addresses[0] for address in addresses)
    moved = [{p.data_ptr() for p in trained_parameters(role).values()} for role in roles]
    assert len(moved[0] | moved[2]) == len(moved[0]) + len(moved[2])
    assert not moved[1] | moved[3]


def test_ppo_saves_whole_models_whose_lower_layers_are_the_base_s(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    train(world, tmp_path, tiny_config(adaptation=TOP, episodes=8))
    before = load_file(world[0] / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("layers.1." in name for name in moved)
