"""K responses to each prompt by transformers:  python -m tests.benchmarks.sampling.peer FOLDER."""

import sys
from pathlib import Path

import torch
from transformers import GenerationConfig

from tests.benchmarks.cases import END, PAD, load_policy_of
from tests.benchmarks.sampling.case import SamplingCase, prompts_of
from tests.benchmarks.worker import Meter, step_protocol


def main(folder: Path) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = SamplingCase.read(folder / "case.json")
    policy = load_policy_of(folder / "policy").train(False)
    if case.device == "cuda":
        policy = policy.to("cuda", torch.bfloat16)
    ids_BL = torch.tensor(prompts_of(case), device=case.device)
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=case.limit,
        num_return_sequences=case.responses,
        eos_token_id=END,
        pad_token_id=PAD,
        use_cache=True,
    )
    send({"ready": True})
    turn = 0
    while wait_for_go():
        torch.manual_seed(turn)
        meter = Meter()
        with torch.inference_mode():
            mask_BL = torch.ones_like(ids_BL)
            said_BL = policy.generate(ids_BL, attention_mask=mask_BL, generation_config=settings)
        took = meter.read()
        turn += 1
        tokens = (said_BL[:, ids_BL.shape[1] :] != PAD).sum(-1).float().mean()
        send({**took, "tokens": tokens.item()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
