"""Models that leave: every layout is loaded in one process that cannot import this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from pipeline.models.policies import export_model, model_folder
from reward_models.model import RewardModel
from stages.adapters.config import LoRA
from stages.models import adapt, load_policy, save_policy
from tests.reward_models.tiny import tiny_base, tiny_tokenizer

IDS = [[5, 6, 7, 1], [8, 3, 9, 10, 11, 1], [4, 1]]
BIAS = 0.75
SCRIPT = """
import json, sys, torch
for name in ("pipeline", "stages", "reward_models", "labeling_ui"):
    sys.modules[name] = None  # importing one fails
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

torch.set_num_threads(1)
given, scores = json.loads(sys.argv[1]), {}
for name, (folder, kind) in given["models"].items():
    if kind == "policy":
        scores[name] = str(AutoModelForCausalLM.from_pretrained(folder).dtype)
        continue
    auto = AutoModelForSequenceClassification
    if kind == "peft":
        auto = AutoPeftModelForSequenceClassification
    trust = {"trust_remote_code": True} if kind == "code" else {}
    model = auto.from_pretrained(folder, num_labels=1, **trust).eval()
    longest = max(map(len, given["ids"]))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in given["ids"]])
    with torch.no_grad():
        logits = model(ids, attention_mask=(ids != 0).long()).logits[:, 0]
    bias = model.config.to_dict().get("score_bias", 0.0) if kind == "noted" else 0.0
    scores[name] = (logits + bias).tolist()
print("SCORES", json.dumps(scores))
"""


def elsewhere(models: dict[str, tuple[Path, str]], cwd: Path) -> dict[str, list[float]]:
    """The scores of all models in a process of transformers and PEFT alone."""
    given = {"models": {n: (str(path), kind) for n, (path, kind) in models.items()}, "ids": IDS}
    command = [sys.executable, "-I", "-c", SCRIPT, json.dumps(given)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(cwd / "modules")}
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("SCORES")]
    assert lines, ran.stderr[-2000:]
    scores: dict[str, list[float]] = json.loads(lines[0].removeprefix("SCORES"))
    return scores


def own(model: RewardModel) -> list[float]:
    rows = [torch.tensor([ids]) for ids in IDS]
    with torch.no_grad():
        return [
            model(row, torch.ones_like(row).bool(), torch.arange(row.shape[1])[None]).item()
            for row in rows
        ]


def saved(model: RewardModel, folder: Path) -> RewardModel:
    with torch.no_grad():
        model.head.weight.mul_(3.0)
    model.set_bias(-BIAS)
    model.save(folder, tiny_tokenizer())
    return model


def with_lora(base: Path, kind: str | None) -> RewardModel:
    causal = AutoModelForCausalLM.from_pretrained(str(base))
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type=kind)
    return RewardModel.on(get_peft_model(causal, lora), 1, base=str(base))


def with_norms(folder: Path, model: torch.nn.Module) -> Path:
    for name, weight in model.named_parameters():
        if "ln_f" in name or "final_layer_norm" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def merged_policy(folder: Path) -> Path:
    """An exported LoRA on a base whose files are in bf16."""
    base = tiny_base(folder / "base")
    AutoModelForCausalLM.from_pretrained(str(base)).bfloat16().save_pretrained(str(base))
    policy = adapt(load_policy(base), LoRA(rank=2))
    save_policy(policy, tiny_tokenizer(), folder / "run/model")
    return export_model(model_folder(folder / "run"), folder / "exported")


def test_every_reward_model_scores_the_same_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 25, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, **small))
    opt = OPTForCausalLM(
        OPTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=16,
            word_embed_proj_dim=16,
            max_position_embeddings=32,
            **small,
        )
    )
    bases = {
        "llama": tiny_base(tmp_path / "llama"),
        "gpt2": with_norms(tmp_path / "gpt2", gpt2),
        "opt": with_norms(tmp_path / "opt", opt),
    }
    models: dict[str, tuple[Path, str]] = {}
    expected: dict[str, list[float]] = {}
    for name, base in bases.items():
        run = tmp_path / f"{name}-run/model"
        expected[f"{name}, in its run"] = own(saved(RewardModel.from_base(base, 1), run))
        models[f"{name}, in its run"] = run, "noted"
        expected[f"{name}, exported"] = expected[f"{name}, in its run"]
        out = export_model(model_folder(run.parent), tmp_path / f"{name}-exported")
        models[f"{name}, exported"] = out, "code" if name == "llama" else "plain"
        assert (out / "modeling_reward.py").exists() == (name == "llama")
        assert own(RewardModel.load(run)) == expected[f"{name}, in its run"]
    adapter = tmp_path / "adapter"
    scores = own(saved(with_lora(bases["gpt2"], "CAUSAL_LM"), adapter))
    models["adapter"] = adapter, "peft"
    expected["adapter"] = [score - BIAS for score in scores]  # it lies in reward.json
    models["adapter, merged"] = export_model(adapter, tmp_path / "merged"), "plain"
    expected["adapter, merged"] = scores
    probe = RewardModel.probe(
        load_policy(bases["llama"]), 1, base=str(bases["llama"]), pooling="last", inner_width=0
    )
    expected["probe"] = own(saved(probe, tmp_path / "probe"))
    models["probe"] = export_model(tmp_path / "probe", tmp_path / "probe-exported"), "code"
    models["policy"] = merged_policy(tmp_path / "policy"), "policy"
    actual = elsewhere(models, tmp_path)
    assert actual.pop("policy") == "torch.bfloat16"
    for name, rows in expected.items():
        assert actual[name] == pytest.approx(rows, abs=1e-5), name
        assert max(rows) - min(rows) > 0.05, name


def test_an_adapter_with_its_head_loads_here_as_before(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    for number, kind in enumerate((None, "CAUSAL_LM")):
        folder = tmp_path / str(number)
        model = saved(with_lora(base, kind), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
        again = RewardModel.load(folder)
        assert own(again) == own(model)
        again.save(tmp_path / "again", tiny_tokenizer())
        assert own(RewardModel.load(tmp_path / "again")) == own(model)


def test_a_reward_model_that_was_saved_without_its_head_in_the_weights_still_loads(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "old"
    model = saved(RewardModel.from_base(tiny_base(tmp_path / "base"), 1), folder)
    weights = load_file(folder / "model.safetensors")
    old = {n.removeprefix("model."): x for n, x in weights.items() if n != "score.weight"}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["score_bias"]
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    assert own(RewardModel.load(folder)) == own(model)


def test_a_head_that_no_classifier_has_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    probe = RewardModel.probe(load_policy(base), 1, base=str(base), pooling="mean", inner_width=0)
    probe.save(tmp_path / "probe", tiny_tokenizer())
    with pytest.raises(ValueError, match="probe: a probe with an MLP or of mean states"):
        export_model(tmp_path / "probe", tmp_path / "out")
    assert not (tmp_path / "out").exists()
