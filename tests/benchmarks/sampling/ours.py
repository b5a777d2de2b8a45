"""K responses to each prompt by us:  python -m tests.benchmarks.sampling.ours FOLDER [compiled]."""

import sys
from pathlib import Path

import torch

from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import load_policy, load_tokenizer
from stages.precision import resolved
from stages.precision_config import Precision
from tests.benchmarks.sampling.case import SamplingCase, prompts_of
from tests.benchmarks.worker import Meter, step_protocol


def main(folder: Path, *, compiled: bool) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = SamplingCase.read(folder / "case.json")
    weights = resolved(Precision(), torch.device(case.device)).frozen
    policy = load_policy(folder / "policy", weights=weights).to(case.device)
    words = load_tokenizer(folder / "policy")
    prompts = [ids for ids in prompts_of(case) for _ in range(case.responses)]
    sampling = SamplingConfig(max_new_tokens=case.limit, batch_size=len(prompts), compiled=compiled)
    send({"ready": True})
    turn = 0
    while wait_for_go():
        generator = torch.Generator().manual_seed(turn)
        meter = Meter()
        drawn = generate_responses(policy, words, prompts, sampling, generator=generator)
        took = meter.read()
        turn += 1
        send({**took, "tokens": sum(len(one.ids) for one in drawn) / len(drawn)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), compiled="compiled" in sys.argv[2:])
