"""rlhf users and rlhf chat --user: a store of adapters beside the base, and one line a mistake."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.models.chat import talk_to_users
from pipeline.models.users import STORE, train_users, user_adapters_config
from stages.generation.config import SamplingConfig
from tests.reward_models.tiny import tiny_base

QUICK = ["steps=40", "learning_rate=0.05", "adaptation.rank=8", "adaptation.alpha=64"]
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demonstrations(path: Path) -> str:
    return write(
        path,
        [
            {"prompt": f"w{n} w1", "response": f"{word} {word}", "user": user}
            for user, word in (("ann", "good"), ("bob", "bad"))
            for n in range(6)
        ],
    )


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(base, tmp_path_factory.mktemp("trained") / "model")
    data = demonstrations(folder.parent / "data.jsonl")
    assert train_users(folder, data, None, QUICK, 0) == folder / STORE
    return folder


def test_each_user_has_a_folder_that_names_its_base(trained):
    base = json.loads((trained / STORE / "base.json").read_text())
    for user in ("ann", "bob"):
        folder = trained / STORE / user
        assert json.loads((folder / "base.json").read_text()) == base
        assert (folder / "adapter_config.json").is_file()


def test_users_answer_one_prompt_side_by_side(trained, capsys):
    talk_to_users({"m": trained}, "w3 w1", GREEDY, 0, names=["bob", "ann"], store=None)
    output = capsys.readouterr().out
    assert output.index("bob") < output.index("ann")
    bob, ann = output[: output.index("ann")], output[output.index("ann") :]
    assert bob.removeprefix("bob") != ann.removeprefix("ann")


@pytest.mark.parametrize(
    ("names", "message"),
    [(["eve"], r"no adapter of user 'eve'; there are: ann, bob"), (["../x"], "expected 1 to 64")],
)
def test_an_unknown_user_is_named(trained, names, message):
    with pytest.raises(ValueError, match=message):
        talk_to_users({"m": trained}, "w3", GREEDY, 0, names=names, store=None)


def test_a_model_without_users_says_what_makes_them(base):
    with pytest.raises(ValueError, match="no store of users' adapters; rlhf users makes one"):
        talk_to_users({"m": base}, "w3", GREEDY, 0, names=["ann"], store=None)


def test_several_policies_cannot_answer_under_users(trained, base):
    with pytest.raises(ValueError, match="--user with 2 policies"):
        talk_to_users({"a": trained, "b": base}, "w3", GREEDY, 0, names=["ann"], store=None)


def test_a_demonstration_without_a_user_is_refused(base, tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "w1", "response": "good"}])
    with pytest.raises(ValueError, match=r"demonstration 1 names no user"):
        train_users(base, data, tmp_path / "store", [], 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adaptation.family=full", "users' adapters need a small family"),
        ("adaptation.dropout=0.1", "must be 0 in users' adapters"),
        ("stepz=3", "stepz is not a key; did you mean steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        user_adapters_config([text])
