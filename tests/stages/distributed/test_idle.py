"""Frozen models wait on the host and come to the device for their turn."""

import logging

import pytest
import torch
from torch import Tensor, nn

from stages.distributed.idle import Idle


class Copied(Idle):
    """Copies stand for tensors on another device."""

    def on_its_device(self, on_host: Tensor) -> Tensor:
        return on_host.clone()


DEVICE = torch.device("cuda:7")  # never used


@pytest.fixture(autouse=True)
def no_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)


def addresses(model: nn.Module) -> dict[str, int]:
    return {name: x.data_ptr() for name, x in model.state_dict().items()}


def test_weights_are_on_the_device_for_their_turn_alone_and_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    idle = Copied([model], [], DEVICE)
    on_host = addresses(model)
    assert idle.num_bytes == sum(x.nbytes for x in before.values())
    for turn in (1, 2):
        with idle.on_device():
            assert all(on_host[name] != where for name, where in addresses(model).items())
            assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
        assert idle.moves == turn
        assert addresses(model) == on_host


def test_what_a_trained_model_uses_too_stays_on_the_device() -> None:
    trained, frozen = nn.Linear(4, 3), nn.Linear(4, 3)
    frozen.weight = trained.weight
    idle = Copied([frozen], [trained], DEVICE)
    assert idle.num_bytes == frozen.bias.nbytes
    before = addresses(frozen)
    with idle.on_device():
        meanwhile = addresses(frozen)
    assert [before[name] == meanwhile[name] for name in ("weight", "bias")] == [True, False]


def test_on_a_cpu_nothing_moves_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        idle = Idle([nn.Linear(2, 2)], [], torch.device("cpu"))
    assert "models.offload has no effect on a CPU" in caplog.text
    with idle.on_device():
        assert (idle.moves, idle.num_bytes) == (0, 0)
