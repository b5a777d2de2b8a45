"""Frozen models wait on the host and come to the device for their turn."""

import logging

import pytest
import torch
from torch import nn

from stages.distributed.idle import Idle

DEVICE = torch.device("meta")  # another one than the host's


def test_weights_are_on_the_device_for_their_turn_alone_and_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    idle = Idle([model], [], DEVICE)
    assert idle.num_bytes == sum(x.nbytes for x in before.values())
    for turn in (1, 2):
        with idle.on_device():
            assert {x.device.type for x in model.state_dict().values()} == {"meta"}
        assert idle.moves == turn
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_what_a_trained_model_uses_too_stays_on_the_device() -> None:
    trained, frozen = nn.Linear(4, 3), nn.Linear(4, 3)
    frozen.weight = trained.weight
    idle = Idle([frozen], [trained], DEVICE)
    assert idle.num_bytes == frozen.bias.nbytes
    with idle.on_device():
        assert (frozen.weight.device.type, frozen.bias.device.type) == ("cpu", "meta")


def test_on_a_cpu_nothing_moves_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        idle = Idle([nn.Linear(2, 2)], [], torch.device("cpu"))
    assert "models.offload has no effect on a CPU" in caplog.text
    with idle.on_device():
        assert (idle.moves, idle.num_bytes) == (0, 0)
