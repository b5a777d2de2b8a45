"""A damaged model folder is refused in one line, which names the place, by every loader."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.config.loading import load_config
from pipeline.steps.order import run_experiment
from reward_models.backbone import load_causal_lm
from reward_models.model import RewardModel
from reward_models.model_files import check_model, first_line
from stages.adapters.config import LoRA
from stages.models import adapt, load_policy, load_tokenizer, save_policy
from tests.reward_models.tiny import tiny_base

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4\n"
Damage = Callable[[Path], object]


def changed(**settings: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return damage


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def shard_is_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = dict.fromkeys(weights, "model-00002-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_become(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def spoil(weights: dict[str, torch.Tensor]) -> None:
    weights[sorted(weights)[-1]].view(-1)[0] = float("nan")


def reshape(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    weights[name] = weights[name][:, :-1].contiguous()


def forget(weights: dict[str, torch.Tensor]) -> None:
    del weights[next(name for name in weights if "layers.1" in name)]


def only_keeps(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty": (only_keeps(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights there"),
    "pointer config": (lambda f: (f / "config.json").write_text(POINTER), "LFS pointer"),
    "pointer weights": (lambda f: (f / "model.safetensors").write_text(POINTER), "LFS pointer"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "empty"),
    "cut header": (cut("model.safetensors", 0.01), "cut"),
    "cut weights": (cut("model.safetensors", 0.7), "it is cut"),
    "cut config": (cut("config.json", 0.5), "not JSON"),
    "a huge header": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "cut",
    ),
    "weights of html": (
        lambda f: (f / "model.safetensors").write_text("<html>404 Not Found</html>"),
        "header",
    ),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "listed config": (lambda f: (f / "config.json").write_text("[]"), "a JSON list"),
    "no model_type": (changed(model_type=None), "model_type is None"),
    "unknown model_type": (changed(model_type="llama9"), "llama9"),
    "an encoder-decoder": (changed(model_type="t5", is_encoder_decoder=True), "encoder-decoder"),
    "quantised": (
        changed(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
    ),
    "a missing shard": (shard_is_missing, "model-00002-of-00002"),
    "not numbers": (weights_become(spoil), "not finite"),
    "wrong shapes": (weights_become(reshape), "up_proj|size|shape"),
    "a missing weight": (weights_become(forget), "weights are missing"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("whole") / "base")


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def one_line(error: pytest.ExceptionInfo[ValueError], folder: Path) -> None:
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_policy, load_causal_lm])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(
    kind: str, load: Callable[[Path], object], whole: Path, tmp_path: Path
):
    damage, message = DAMAGES[kind]
    folder = copied(whole, tmp_path / "base")
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    one_line(error, folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [POINTER, "{", "[1]", "{}"])
def test_a_damaged_tokenizer_is_refused_in_one_line(
    name: str, text: str, whole: Path, tmp_path: Path
):
    folder = copied(whole, tmp_path / "base")
    (folder / name).write_text(text)
    if (name, text) == ("tokenizer_config.json", "{}"):
        return  # says nothing wrong
    with pytest.raises(ValueError, match="tokenizer") as error:
        load_tokenizer(folder)
    one_line(error, folder)


@pytest.mark.parametrize("load", [load_policy, load_tokenizer, load_causal_lm, check_model])
def test_a_file_is_no_folder(load: Callable[[Path], object], whole: Path):
    with pytest.raises(ValueError, match="a file; expected a model's folder"):
        load(whole / "config.json")


def test_a_run_is_refused_before_anything_is_made(whole: Path, tmp_path: Path):
    folder = copied(whole, tmp_path / "base")
    cut("model.safetensors", 0.7)(folder)
    path = Path(__file__).parents[2] / "configs/quickstart.yaml"
    config = load_config(path, [f"model={folder}"])
    with pytest.raises(ValueError, match="it is cut"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def adapter(whole: Path, tmp_path: Path) -> Path:
    model, folder = adapt(load_policy(whole), LoRA(rank=2)), tmp_path / "adapter"
    save_policy(model, load_tokenizer(whole), folder)
    load_policy(folder)
    return folder


def without_base(folder: Path) -> None:
    (folder / "base.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )


ADAPTERS: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no weights there"),
    "cut": (cut("adapter_model.safetensors", 0.8), "it is cut"),
    "pointer": (lambda f: (f / "adapter_model.safetensors").write_text(POINTER), "LFS pointer"),
    "unknown kind": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "MAGIC"}'),
        "MAGIC",
    ),
    "no kind": (lambda f: (f / "adapter_config.json").write_text("{}"), "peft_type is None"),
    "config of html": (lambda f: (f / "adapter_config.json").write_text("<html>"), "not JSON"),
    "no base": (without_base, "base_model_name_or_path is None"),
    "empty base.json": (lambda f: (f / "base.json").write_text("{}"), "no 'name'"),
    "base.json of html": (lambda f: (f / "base.json").write_text("<html>"), "not JSON"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_damaged_adapter_is_refused_in_one_line(kind: str, adapter: Path):
    damage, message = ADAPTERS[kind]
    damage(adapter)
    with pytest.raises(ValueError, match=message) as error:
        load_policy(adapter)
    one_line(error, adapter)


@pytest.mark.parametrize("change", ["wrong shapes", "a missing weight", "NaN"])
def test_an_adapter_with_other_weights_is_refused_in_one_line(change: str, adapter: Path):
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    match change:
        case "wrong shapes":
            weights[name] = weights[name][:, :-1].contiguous()
        case "a missing weight":
            del weights[name]
        case "NaN":
            weights[name].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter|missing|not finite") as error:
        load_policy(adapter)
    one_line(error, adapter)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "head.safetensors").unlink(), "no such file"),
        (lambda f: (f / "head.safetensors").write_text(POINTER), "LFS pointer"),
        (cut("head.safetensors", 0.9), "it is cut"),
        (cut("model.safetensors", 0.9), "it is cut"),
        (lambda f: save_file({"head.weight": torch.ones(1, 3)}, f / "head.safetensors"), "head of"),
        (
            lambda f: save_file(
                {"head.weight": torch.full((1, 16), torch.nan)}, f / "head.safetensors"
            ),
            "not finite|head of",
        ),
        (lambda f: (f / "reward.json").write_text("{}"), "not the card of a reward model"),
        (lambda f: (f / "reward.json").unlink(), "it has no reward.json"),
        (weights_become(forget), "weights are missing"),
    ],
)
def test_a_damaged_reward_model_is_refused_in_one_line(
    damage: Damage, message: str, whole: Path, tmp_path: Path
):
    RewardModel.from_base(whole, seed=0).save(tmp_path / "rm")
    damage(tmp_path / "rm")
    with pytest.raises(ValueError, match=message) as error:
        RewardModel.load(tmp_path / "rm")
    one_line(error, tmp_path / "rm")


def test_an_adapter_refuses_a_base_with_other_embeddings(whole: Path, tmp_path: Path):
    base = copied(whole, tmp_path / "base")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), lora)
    RewardModel.on(model, 0, base=str(base)).save(tmp_path / "rm")
    probe = {"pooling": "last", "inner_width": 0}
    RewardModel.probe(load_policy(base), 0, base=str(base), **probe).save(tmp_path / "probe")
    for saved in ("rm", "probe"):
        RewardModel.load(tmp_path / saved)
    weights_become(lambda w: w["model.embed_tokens.weight"].mul_(1.5))(base)
    for saved in ("rm", "probe"):
        with pytest.raises(ValueError, match="only fits the weights it was trained on"):
            RewardModel.load(tmp_path / saved)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such layer\nTry another."), "no such layer"),
        (OSError("\n\n  the disk is full  \n"), "the disk is full"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError(" \n "), "RuntimeError"),
    ],
)
def test_the_first_line_with_text_is_returned(error: Exception, message: str) -> None:
    assert first_line(error) == message
