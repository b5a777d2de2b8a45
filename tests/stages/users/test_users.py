"""Many users in one batch: the same as each alone, when answering and when training."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from reward_models.records import Demonstration
from stages.adapters.config import BitFit, Bottleneck, LoRA, Prefix, PTuningV2, Restricted
from stages.data.padding import pad_right, positions
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import adapt, load_policy, load_tokenizer
from stages.users.adapters import StackedAdapters, UserAdapter
from stages.users.config import UserAdaptersConfig
from stages.users.store import UserStore, checked_name
from stages.users.train import (
    generate_for_users,
    limit_norms,
    new_adapter,
    open_user_store,
    train_user_adapters,
)
from tests.reward_models.tiny import tiny_base

GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=12, batch_size=64)
FAMILIES: dict[str, Restricted] = {
    "lora": LoRA(rank=4, alpha=8.0),
    "bottleneck": Bottleneck(width=6),
    "parallel": Bottleneck(width=6, placement="parallel"),
    "prefix": Prefix(length=5),
    "ptuning-v2": PTuningV2(length=5),
    "bitfit": BitFit(),
}
SMALLER: dict[str, Restricted] = {
    **FAMILIES,
    "lora": LoRA(rank=2, alpha=8.0),
    "bottleneck": Bottleneck(width=3),
    "prefix": Prefix(length=2),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def shaken(one: UserAdapter, seed: int) -> UserAdapter:
    """An adapter that changes something of its own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in one.tensors.items()
    }
    return UserAdapter(one.config, tensors)


def store_of(base: Path, folder: Path, family: str, count: int) -> UserStore:
    """Users' adapters of one family, every third of another size."""
    model = load_policy(base)
    starts = [
        new_adapter(model, load_tokenizer(base), one[family], 0) for one in (FAMILIES, SMALLER)
    ]
    store = open_user_store(folder, model)
    for user in range(count):
        store.put(f"u{user}", shaken(starts[user % 3 == 0], user))
    return store


def alone(base: Path, store: UserStore, name: str) -> PreTrainedModel:
    """PEFT's own reading of one user's folder."""
    model = PeftModel.from_pretrained(load_policy(base), str(store.folder / name))
    model.train(False)
    return model


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, 23) for _ in range(rng.randint(1, 9))] for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_32_users_in_one_batch_answer_as_32_separate_runs(base, tmp_path, family):
    store, prompts = store_of(base, tmp_path, family, 32), prompts_of(32)
    names = [f"u{user}" for user in range(32)]
    tokenizer, rng = load_tokenizer(base), torch.Generator()
    together = generate_for_users(
        load_policy(base), tokenizer, store, prompts, GREEDY, users=names, generator=rng
    )
    separate = [
        generate_responses(alone(base, store, name), tokenizer, [prompt], GREEDY, generator=rng)[0]
        for name, prompt in zip(names, prompts, strict=True)
    ]
    assert [one.ids for one in together] == [one.ids for one in separate]
    assert len({tuple(one.ids) for one in together}) > 10  # users do differ
    assert len({len(one.ids) for one in together}) > 1  # rows leave the batch at different times


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_users_in_one_batch_equal_pefts_to_a_hundred_thousandth(base, tmp_path, family):
    store, prompts = store_of(base, tmp_path, family, 6), prompts_of(6)
    model = load_policy(base)
    adapters = StackedAdapters([store.get(name) for name in store.names()])
    ids_BL, mask_BL = pad_right(prompts, 0)
    adapters.assign(torch.arange(6))
    with torch.no_grad(), adapters.on(model):
        together = model(
            input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=positions(mask_BL)
        ).logits
    for row, (name, prompt) in enumerate(zip(store.names(), prompts, strict=True)):
        with torch.no_grad():
            own = alone(base, store, name)(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(together[row, : len(prompt)], own, atol=1e-5, rtol=1e-5)


def test_the_same_prompt_of_two_users_gets_two_answers_in_any_order(base, tmp_path):
    store = store_of(base, tmp_path, "lora", 3)
    tokenizer, model, prompt = load_tokenizer(base), load_policy(base), [4, 5, 6]

    def answers(users: list[str]) -> dict[str, list[int]]:
        drawn = generate_for_users(
            model,
            tokenizer,
            store,
            [prompt] * len(users),
            GREEDY,
            users=users,
            generator=torch.Generator(),
        )
        return dict(zip(users, [one.ids for one in drawn], strict=True))

    one = answers(["u0", "u1", "u2"])
    assert one == answers(["u2", "u0", "u1"])
    assert len({tuple(ids) for ids in one.values()}) == 3


def test_the_model_is_as_before_once_users_have_been_answered(base, tmp_path):
    store, model = store_of(base, tmp_path, "lora", 2), load_policy(base)
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    generate_for_users(
        model,
        load_tokenizer(base),
        store,
        [[4], [5]],
        GREEDY,
        users=["u0", "u1"],
        generator=torch.Generator(),
    )
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


def likes(word: str, count: int, seed: int) -> list[Demonstration]:
    rng = random.Random(seed)
    return [
        Demonstration(f"w{rng.randrange(9)} w{rng.randrange(9)}", f"{word} {word}")
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_users_trained_together_become_what_each_becomes_alone(base, tmp_path, family):
    data = {f"u{n}": likes(f"w{10 + n}", 3 + 2 * n, n) for n in range(4)}
    config = UserAdaptersConfig(
        adaptation=FAMILIES[family], steps=6, examples_per_step=2, learning_rate=1e-2
    )
    tokenizer, model = load_tokenizer(base), load_policy(base)
    together = open_user_store(tmp_path / "together", model)
    train_user_adapters(model, tokenizer, data, config, together, seed=0)
    for name, own in data.items():
        separate = open_user_store(tmp_path / name, model)
        train_user_adapters(model, tokenizer, {name: own}, config, separate, seed=0)
        for key, tensor in separate.get(name).tensors.items():
            torch.testing.assert_close(
                together.get(name).tensors[key], tensor, atol=2e-5, rtol=1e-3
            )


def test_each_user_learns_its_own_answer_and_the_base_does_not_move(base, tmp_path):
    data = {f"u{n}": likes(f"w{10 + n}", 8, n) for n in range(3)}
    config = UserAdaptersConfig(adaptation=LoRA(rank=8, alpha=64.0), steps=60, learning_rate=3e-2)
    tokenizer, model = load_tokenizer(base), load_policy(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses: list[float] = []
    store = open_user_store(tmp_path, model)
    train_user_adapters(
        model,
        tokenizer,
        data,
        config,
        store,
        seed=0,
        report=lambda step: losses.append(step.metrics["users/loss_nats_per_token"]),
    )
    assert losses[-1] < 0.95 * losses[0]  # an untrained base adapts little
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_interrupted_training_goes_on_with_the_users_still_without_a_set(base, tmp_path):
    data = {f"u{n}": likes("w3", 2, n) for n in range(3)}
    config = UserAdaptersConfig(adaptation=FAMILIES["lora"], steps=2, users_per_batch=1)
    tokenizer, model = load_tokenizer(base), load_policy(base)
    store = open_user_store(tmp_path, model)

    def stop(_: object) -> None:
        if len(store.names()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_user_adapters(model, tokenizer, data, config, store, seed=0, report=stop)
    written = (tmp_path / "u0/adapter_model.safetensors").stat().st_mtime_ns
    train_user_adapters(model, tokenizer, data, config, store, seed=0)
    assert store.names() == ["u0", "u1", "u2"]
    assert (tmp_path / "u0/adapter_model.safetensors").stat().st_mtime_ns == written


def test_a_users_gradient_is_limited_by_its_own_norm_alone():
    first, second = torch.tensor([[3.0, 0.0], [0.1, 0.0]]), torch.tensor([[4.0], [0.0]])
    limit_norms([first, second], 1.0)
    assert first.tolist() == [pytest.approx([0.6, 0.0]), pytest.approx([0.1, 0.0])]
    assert second.flatten().tolist() == pytest.approx([0.8, 0.0])


def test_the_store_keeps_the_latest_used_in_memory_and_the_rest_on_disk(base, tmp_path):
    store_of(base, tmp_path, "lora", 4)
    base_hash = json.loads((tmp_path / "base.json").read_text())["weights_sha256"]
    small = UserStore(tmp_path, base_name="x", base_hash=base_hash, in_memory=2)
    first = small.get("u0")
    small.get("u1")
    assert small.get("u0") is first
    small.get("u2")  # u1, used longest ago, leaves
    assert small.get("u0") is first
    shutil.rmtree(tmp_path / "u1")
    with pytest.raises(ValueError, match=r"no adapter of user 'u1'; there are: u0, u2, u3"):
        small.get("u1")


def test_sets_of_another_base_are_refused(base, tmp_path):
    store_of(base, tmp_path, "lora", 1)
    with pytest.raises(ValueError, match="an adapter only fits the weights it was trained on"):
        UserStore(tmp_path, base_name="other", base_hash="0" * 64)


def test_a_policy_that_is_a_set_itself_is_told_to_be_exported(base, tmp_path):
    with pytest.raises(
        ValueError, match="users' adapters need a whole model, which rlhf export-model"
    ):
        open_user_store(tmp_path, adapt(load_policy(base), LoRA(rank=2)))


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 65])
def test_a_users_name_cannot_leave_the_store(name):
    with pytest.raises(ValueError, match="expected 1 to 64 letters"):
        checked_name(name)


def test_one_batch_of_users_is_faster_than_one_after_another(base, tmp_path):
    assert ratio(base, tmp_path, users=16, rounds=1) > 2


@pytest.mark.bench
def test_32_users_in_one_batch_are_five_times_as_fast(base, tmp_path):
    assert ratio(base, tmp_path, users=32, rounds=3) > 5


def ratio(base: Path, folder: Path, *, users: int, rounds: int) -> float:
    """Return the speed in one batch over that of one user after another; turns alternate."""
    store, model, tokenizer = (
        store_of(base, folder, "lora", users),
        load_policy(base),
        load_tokenizer(base),
    )
    names, prompts = [f"u{n}" for n in range(users)], prompts_of(users)
    spent = {"together": 0.0, "apart": 0.0}
    for _ in range(rounds):
        for kind, groups in (("together", [names]), ("apart", [[name] for name in names])):
            began, done = time.process_time(), 0
            for group in groups:
                batch = prompts[done : done + len(group)]
                generate_for_users(
                    model, tokenizer, store, batch, GREEDY, users=group, generator=torch.Generator()
                )
                done += len(group)
            spent[kind] += time.process_time() - began
    return spent["apart"] / spent["together"]
