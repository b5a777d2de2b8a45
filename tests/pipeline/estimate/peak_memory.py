"""One stage of a small experiment in a process of its own; prints its peak in bytes.

    python peak_memory.py STAGE CONFIG BASE FOLDER

The peak is what the stage holds above what Python holds once the libraries are imported.
"""

import sys
from pathlib import Path

import torch

from pipeline.config.loading import load_config
from pipeline.steps.step import DataFolder
from reward_models.model import RewardModel
from reward_models.records import Ranking, RankingTask, read_records
from stages.adapters.config import Adaptation, Probe
from stages.models import adapt, load_policy, load_tokenizer, tokenizer_hash
from stages.ppo.train import train_ppo
from stages.reward.train import train_reward
from stages.sft.train import train_sft


def held(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(name)


def main(stage: str, config_path: str, base: str, folder: str) -> None:
    torch.set_num_threads(1)
    config, data, out = (
        load_config(Path(config_path)),
        DataFolder(Path(folder)),
        Path(folder) / stage,
    )
    if stage.startswith("ppo"):
        prepare_reward_model(base, Path(folder) / "rm", config.reward.adaptation)
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
    demonstrations = data.demonstrations()
    if stage == "sft":
        train_sft(
            config.sft,
            base=base,
            demonstrations=demonstrations,
            validation=demonstrations[:2],
            out=out,
            seed=0,
        )
    elif stage == "reward":
        train_reward(
            config.reward,
            base=base,
            out=out,
            seed=0,
            demonstrations=demonstrations,
            tasks=read_records(Path(folder) / "tasks.jsonl", RankingTask),
            rankings=read_records(Path(folder) / "rankings.jsonl", Ranking),
        )
    else:
        chosen = config.ppo if stage == "ppo" else config.ppo_ptx
        assert chosen is not None
        texts = Path(folder) / "texts.jsonl" if chosen.pretraining is not None else None
        train_ppo(
            chosen,
            policy=base,
            reward_model=Path(folder) / "rm",
            pretraining=texts,
            prompts=data.prompts("ppo"),
            out=out,
            seed=0,
        )
    print(held("VmHWM") - before)


def prepare_reward_model(base: str, folder: Path, adaptation: Adaptation) -> None:
    if not folder.is_dir():
        if isinstance(adaptation, Probe):
            made = RewardModel.probe(
                load_policy(base), seed=3, base=base, pooling="last", inner_width=0
            )
        else:
            made = RewardModel.on(adapt(load_policy(base), adaptation), seed=3, base=base)
        made.record_training(tokenizer_hash(load_tokenizer(base)), {"simulated"})
        made.save(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
