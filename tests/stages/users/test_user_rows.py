"""Rows of several users against oracles: transformers' own cache, and adapters written out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import DynamicCache, PreTrainedModel

from stages.data.padding import pad_right, positions
from stages.models import load_policy
from stages.users.adapters import StackedAdapters, UserAdapter
from tests.reward_models.tiny import tiny_base

PROMPTS = [[4, 5, 6], [7, 8], [9, 10, 11, 12, 13], [3], [5, 5, 5, 5]]
HEADS, HEAD_SIZE, HIDDEN = 2, 8, 16
TARGETS = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def drawn(*shape: int, seed: int) -> Tensor:
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prefix_adapter(user: int) -> UserAdapter:
    """A prefix of as many positions as the user's number says."""
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.prefix_{kind}": drawn(
            HEADS, user + 1, HEAD_SIZE, seed=100 * user + 10 * layer + len(kind)
        )
        for layer in (0, 1)
        for kind in ("key", "value")
    }
    return UserAdapter({"peft_type": "PREFIX"}, tensors)


def bottleneck_adapter(user: int, *, parallel: bool) -> UserAdapter:
    """A bottleneck of another width for every user."""
    tensors, width = {}, 2 + user
    for layer in (0, 1):
        for target in TARGETS:
            path = f"base_model.model.model.layers.{layer}.{target}"
            incoming = 32 if parallel and "mlp" in target else HIDDEN
            shapes = {
                "down.weight": (width, incoming),
                "down.bias": (width,),
                "up.weight": (HIDDEN, width),
                "up.bias": (HIDDEN,),
            }
            for number, (name, shape) in enumerate(shapes.items()):
                seed = 1000 * user + 100 * layer + 10 * len(target) + number
                tensors[f"{path}.{name}"] = drawn(*shape, seed=seed)
    config = {
        "peft_type": "BOTTLENECK",
        "activation": "gelu",
        "parallel": parallel,
        "scaling": 1.5 + user,
    }
    return UserAdapter(config, tensors)


def together(model: PreTrainedModel, adapters: list[UserAdapter], users: list[int]) -> list[Tensor]:
    """Each prompt's logits, all prompts in one right-padded batch."""
    ids_BL, mask_BL = pad_right(PROMPTS, 0)
    stacked = StackedAdapters(adapters)
    stacked.assign(torch.tensor(users))
    with torch.no_grad(), stacked.on(model):
        logits_BLV = model(
            input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=positions(mask_BL)
        ).logits
    return [logits_BLV[row, : len(prompt)] for row, prompt in enumerate(PROMPTS)]


def check(
    output: list[Tensor], alone: Callable[[int, list[int]], Tensor], users: list[int]
) -> None:
    for logits, user, prompt in zip(output, users, PROMPTS, strict=True):
        torch.testing.assert_close(logits, alone(user, prompt), atol=1e-5, rtol=1e-5)


def test_rows_prefixes_equal_the_same_keys_and_values_in_transformers_cache(base):
    model, users = load_policy(base), [0, 3, 1, 2, 0]
    adapters = [prefix_adapter(user) for user in range(4)]

    def alone(user: int, prompt: list[int]) -> Tensor:
        cache = DynamicCache(config=model.config)
        for layer in (0, 1):
            key, value = (
                adapters[user].tensors[
                    f"base_model.model.model.layers.{layer}.self_attn.prefix_{kind}"
                ]
                for kind in ("key", "value")
            )
            cache.update(key[None], value[None], layer)
        with torch.no_grad():
            return model(
                input_ids=torch.tensor([prompt]),
                position_ids=torch.arange(len(prompt))[None],
                attention_mask=torch.ones(1, user + 1 + len(prompt)),
                past_key_values=cache,
            ).logits[0]

    check(together(model, adapters, users), alone, users)


@pytest.mark.parametrize("parallel", [False, True])
def test_rows_bottlenecks_equal_adapters_written_out_in_each_layer(base, parallel):
    model, users = load_policy(base), [0, 3, 1, 2, 0]
    adapters = [bottleneck_adapter(user, parallel=parallel) for user in range(4)]

    def alone(user: int, prompt: list[int]) -> Tensor:
        handles = []
        for name, module in model.named_modules():
            if name.endswith(TARGETS):
                part = {
                    key.removeprefix(f"base_model.model.{name}."): tensor
                    for key, tensor in adapters[user].tensors.items()
                }
                part = {
                    key: part[key] for key in ("down.weight", "down.bias", "up.weight", "up.bias")
                }

                def hook(_: nn.Module, x: tuple[Tensor], y: Tensor, p: dict[str, Tensor] = part):
                    z = x[0] if parallel else y
                    low = gelu(z @ p["down.weight"].T + p["down.bias"])
                    return y + (1.5 + user) * (low @ p["up.weight"].T + p["up.bias"])

                handles.append(module.register_forward_hook(hook))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0]
        for handle in handles:
            handle.remove()
        return logits

    check(together(model, adapters, users), alone, users)


def test_sets_of_different_families_or_places_are_refused():
    with pytest.raises(ValueError, match=r"of different kinds: PREFIX .* BOTTLE"):
        StackedAdapters([prefix_adapter(0), bottleneck_adapter(1, parallel=False)])


def test_a_place_that_the_model_does_not_have_is_named(base):
    adapters = StackedAdapters(
        [
            UserAdapter(
                {"peft_type": "PREFIX"},
                {"base_model.model.nowhere.prefix_key": torch.zeros(1, 1, 1)},
            )
        ]
    )
    with (
        pytest.raises(ValueError, match="the adapters target 'nowhere', which the model has"),
        adapters.on(load_policy(base)),
    ):
        pass
