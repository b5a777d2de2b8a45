"""Peak memory and CPU time of LoRA PPO steps of one model by precision, from load to last step.

    python -m tests.benchmarks.precisions MODEL WORK            each way in turn; prints a table
    python -m tests.benchmarks.precisions MODEL WORK --only nf4   ways whose name contains this

MODEL is a folder or a hub name; WORK gets its weights in bfloat16, a LoRA reward model of random
head, and precisions.json. Policy, reference, reward model and critic are LoRA on one backbone. Each
way is a process of its own that runs `train_ppo`: VmHWM less what libraries take, which is what is
there after the same run of a tiny model: of loading, of the steps, and of all from the first step
on. Freed memory goes back at once, so that the process holds what is in use.

"nats" is the mean distance of the log-probabilities of the prompts' tokens from those of float32,
"score" the largest distance of a reward, both of the same weights on the same texts.
"""

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM

from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.adapters.config import LoRA
from stages.data.template import conversation_ids
from stages.models import device, load_policy, load_tokenizer, tokenizer_hash
from stages.ppo.config import PPOConfig
from stages.ppo.train import train_ppo
from stages.precision import resolved
from stages.precision_config import Precision
from stages.progress import Step
from stages.reward.config import RewardConfig
from stages.reward.train import new_reward_model
from tests.stages.ppo.tiny_ppo import tiny_world, train

ROOT = Path(__file__).parent.parent.parent
WEIGHTS: dict[str, dict[str, str]] = {
    "float32": {"weights": "fp32"},
    "bf16": {"weights": "bf16"},
    "nf4, bf16": {"weights": "nf4", "compute": "bf16"},
    "nf4, float32": {"weights": "nf4", "compute": "fp32"},
}
WAYS = {
    f"{name}{', checkpointed' if checkpointed else ''}": (precision, checkpointed)
    for checkpointed in (False, True)
    for name, precision in WEIGHTS.items()
}
EPISODES, ROLLOUTS, WORDS, RESPONSE = 4, 1, 60, 24
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
ADAPTER = LoRA(rank=8, alpha=16.0)
COMPARED = ("ppo/score", "ppo/kl_nats", "ppo/first_ratio_error")


def prompts() -> list[Prompt]:
    """Pieces of the license, of about a hundred tokens each with the chat template."""
    words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    starts = range(0, WORDS * EPISODES * ROLLOUTS, WORDS)
    return [Prompt("Summarise: " + " ".join(words[i : i + WORDS])) for i in starts]


def prepare(model: str, work: Path) -> None:
    """Write the base in bfloat16, as most are published, and a reward model on it."""
    base = work / "base"
    if (work / "reward").is_dir():
        return
    tokenizer = load_tokenizer(model)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(str(base))
    tokenizer.save_pretrained(str(base))
    torch.manual_seed(0)
    reward = new_reward_model(RewardConfig(adaptation=ADAPTER), base, 0)
    reward.record_training(tokenizer_hash(tokenizer), {"simulated"})
    reward.save(work / "reward", tokenizer)


def measure(work: Path, way: str) -> dict[str, Any]:
    """Train for one rollout in this process."""
    precision, checkpointed = WAYS[way]
    config = PPOConfig.model_validate(
        {
            "episodes": EPISODES * ROLLOUTS,
            "episodes_per_rollout": EPISODES,
            "minibatch": EPISODES,
            "micro_batch_size": 1,
            "learning_rate": 1e-4,
            "critic_learning_rate": 1e-4,
            "warmup_iterations": 1,
            "ema_decay": None,
            "sampling": {"max_new_tokens": RESPONSE, "batch_size": EPISODES},
            "adaptation": ADAPTER.model_dump(),
            "precision": precision,
            "activation_checkpointing": checkpointed,
            "health": {"action": "warn", "min_eos_rate": 0.0},
        }
    )
    warm_up(config)
    forget_peak()
    out = work / "out" / way.replace(", ", "-")
    shutil.rmtree(out, ignore_errors=True)
    row: dict[str, Any] = {"way": way, "libraries": memory("VmRSS"), "steps": []}

    def listen(event: object) -> None:
        if isinstance(event, Step) and event.done:
            row["steps"].append({name: event.metrics[name] for name in COMPARED})
            row["training"] = memory("VmHWM")  # what follows the last step is not a step
        elif "loaded" not in row and "fit into memory" in str(event):
            row["loading"] = memory("VmHWM")
            forget_peak()
            row["loaded"] = memory("VmRSS")
            row["cpu_s"] = -time.process_time()

    train_ppo(
        config,
        policy=work / "base",
        reward_model=work / "reward",
        prompts=prompts(),
        out=out,
        seed=0,
        report=listen,
    )
    row["cpu_s"] += time.process_time()
    row["saving"] = memory("VmHWM")
    log_probabilities, scores = outputs(work, precision)
    return row | {"log_probabilities": log_probabilities, "scores": scores}


def warm_up(config: PPOConfig) -> None:
    """Let libraries load what a run makes them load."""
    with TemporaryDirectory() as folder:
        world = tiny_world(Path(folder))
        train(world, Path(folder) / "out", config)


def outputs(work: Path, precision: dict[str, str]) -> tuple[list[float], list[float]]:
    """Return log-probabilities of the prompts' tokens, and their rewards."""
    weights = resolved(Precision.model_validate(precision), device()).frozen
    policy = load_policy(work / "base", weights=weights)
    reward = RewardModel.load(work / "reward", weights=weights)
    log_probabilities: list[float] = []
    scores: list[float] = []
    with torch.no_grad():
        for prompt in prompts():
            ids_1L = torch.tensor([conversation_ids(load_tokenizer(work / "base"), prompt)])
            logits_LV: Tensor = policy(input_ids=ids_1L).logits[0, :-1].float()
            chosen_L1 = logits_LV.log_softmax(-1).gather(1, ids_1L[0, 1:, None])
            log_probabilities += chosen_L1[:, 0].tolist()
            mask_1L = torch.ones_like(ids_1L, dtype=torch.bool)
            position_1L = torch.arange(ids_1L.shape[1])[None]
            scores.append(float(reward(ids_1L, mask_1L, position_1L)))
    return log_probabilities, scores


def memory(name: str) -> int:
    """Return a value of this process from the kernel, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Let VmHWM begin anew, and freed tensors leave the process, now and later."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def table(rows: dict[str, dict[str, Any]]) -> None:
    """Print what each way took, and its share of float32's, which was measured before."""
    for way, row in rows.items():
        exact = rows["float32, checkpointed" if "checkpointed" in way else "float32"]
        over, over_exact = (
            {name: r[name] - r["libraries"] for name in ("loaded", "loading", "training", "saving")}
            for r in (row, exact)
        )
        nats = [
            abs(a - b)
            for a, b in zip(row["log_probabilities"], exact["log_probabilities"], strict=True)
        ]
        score = max(abs(a - b) for a, b in zip(row["scores"], exact["scores"], strict=True))
        shares = ", ".join(
            f"{name} {mib} MiB ({mib / over_exact[name]:.2f})" for name, mib in over.items()
        )
        print(
            f"{way}: {shares}, {row['cpu_s']:.0f} CPU s, nats {sum(nats) / len(nats):.4f}, "
            f"score {score:.4f} of {max(map(abs, exact['scores'])):.3f}, {row['steps']}"
        )


def main(
    model: str,
    work: Path,
    only: Annotated[str, typer.Option(help="Ways whose name contains this.")] = "",
    here: Annotated[str, typer.Option(help="The one way to measure in this process.")] = "",
) -> None:
    """Measure the ways that are named, and print a table of all."""
    torch.set_num_threads(1)
    if here:
        (work / "row.json").write_text(json.dumps(measure(work, here)), encoding="utf-8")
        return
    work.mkdir(parents=True, exist_ok=True)
    prepare(model, work)
    path = work / "precisions.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for way in WAYS:
        if only in way:
            command = [sys.executable, "-m", __spec__.name, model, str(work), "--here", way]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            rows[way] = json.loads((work / "row.json").read_text(encoding="utf-8"))
            path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    table(rows)


if __name__ == "__main__":
    typer.run(main)
