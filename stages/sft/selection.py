"""Which epoch of the supervised stage goes on.

Validation loss is lowest after about one epoch, while a reward model's score and what people prefer
still rise. So the paper chooses by the mean score of the reward model on responses to validation
prompts (Ouyang et al. 2022, appendix C.1); before there is a reward model, the lowest validation
loss chooses. Nothing is trained again: the weights of every epoch are kept.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from reward_models.base_names import base_name
from reward_models.context_limit import context_limit
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.data.template import conversation_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.generation.score import score_responses
from stages.models import device, load_policy, load_tokenizer, save_policy, tokenizer_hash
from stages.progress import Report, Step, announce
from stages.prompt_lengths import require_fit

CHECKPOINTS = "checkpoints"
SELECTION = "selection.json"
_TO_RESUME = ("optimizer*", "scheduler*", "rng_state*", "scaler*")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is known of one epoch; `validation_loss` is in nats per response token."""

    epoch: int
    validation_loss: float | None
    mean_score: float | None = None
    share_ended: float | None = None
    num_prompts: int | None = None


def choose_epoch(
    trained: Path,
    *,
    reward_model: Path | None,
    selection_prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    out: Path,
    seed: int,
    report: Report,
    last: bool = False,
) -> None:
    """Write the best epoch of `trained`, a folder of `train_sft`, to out/model, with the reasons.

    With a reward model, each epoch answers every selection prompt once, from the same random
    numbers; `last` takes the last epoch whatever the others are like. Raises ValueError without
    checkpoints, or without anything to choose by.
    """
    seen = _epochs(trained / CHECKPOINTS)
    if reward_model is not None:
        if not selection_prompts:
            raise ValueError("a reward model is to choose the epoch, but there are no prompts")
        rooms = [
            context_limit(epoch_checkpoints(trained / CHECKPOINTS)[0]),
            context_limit(reward_model),
        ]
        words = load_tokenizer(epoch_checkpoints(trained / CHECKPOINTS)[0])
        require_fit(words, selection_prompts, sampling.max_new_tokens, rooms, "select")
        scorer = RewardModel.load(reward_model).to(device())
        for place, path in enumerate(epoch_checkpoints(trained / CHECKPOINTS)):
            of_epoch = f"of epoch {place + 1} of {len(seen)}"
            announce(report, f"sampling {len(selection_prompts)} responses {of_epoch}")
            seen[place] = _scored(seen[place], path, scorer, selection_prompts, sampling, seed)
            metrics = {"sft/mean_score": seen[place].mean_score or 0.0}
            report(Step(place + 1, len(seen), metrics))
    best = seen[-1] if last else _best(seen)
    _publish(epoch_checkpoints(trained / CHECKPOINTS)[best.epoch - 1], out)
    chosen = {
        "epoch": best.epoch,
        "chosen_by": _criterion(last=last, scored=reward_model is not None),
        "reward_model": None if reward_model is None else base_name(str(reward_model), out),
        "epochs": [asdict(epoch) for epoch in seen],
    }
    _write_json(out / SELECTION, chosen)


def _criterion(*, last: bool, scored: bool) -> str:
    if last:
        return "being the last"
    return "reward model's mean score" if scored else "validation loss"


def epoch_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, one an epoch, in order."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def drop_resume_state(checkpoint: Path) -> None:
    """Leave weights, tokenizer and trainer state; drop what only a resumed run would read."""
    for pattern in _TO_RESUME:
        for path in checkpoint.glob(pattern):
            path.unlink()


def _epochs(checkpoints: Path) -> list[Epoch]:
    """The epochs with their validation losses, as the last checkpoint's trainer state has them."""
    found = epoch_checkpoints(checkpoints)
    if not found:
        raise ValueError(f"{checkpoints}: no checkpoint there; expected one an epoch")
    state = json.loads((found[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    losses = {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}
    steps = [int(path.name.split("-")[1]) for path in found]
    return [Epoch(number, losses.get(step)) for number, step in enumerate(steps, 1)]


def _scored(
    epoch: Epoch,
    checkpoint: Path,
    scorer: RewardModel,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    seed: int,
) -> Epoch:
    tokenizer = load_tokenizer(checkpoint)
    scorer.card.require_tokenizer(tokenizer_hash(tokenizer), str(checkpoint))
    policy = load_policy(checkpoint)
    policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
    asked = [conversation_ids(tokenizer, prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(seed)
    drawn = generate_responses(policy, tokenizer, asked, sampling, generator=generator)
    scores = score_responses(
        scorer,
        tokenizer,
        prompts,
        [response_text(tokenizer, response.ids) for response in drawn],
        batch_size=sampling.batch_size,
        ended=[response.ended for response in drawn],
    )
    ended = fmean(float(response.ended) for response in drawn)
    return replace(epoch, mean_score=fmean(scores), share_ended=ended, num_prompts=len(prompts))


def _best(epochs: Sequence[Epoch]) -> Epoch:
    """The highest mean score, else the lowest validation loss; the earlier of two equal epochs."""
    if len(epochs) == 1:
        return epochs[0]
    if epochs[0].mean_score is not None:
        return max(epochs, key=lambda epoch: epoch.mean_score or 0.0)
    losses = [epoch.validation_loss for epoch in epochs if epoch.validation_loss is not None]
    if len(losses) < len(epochs):
        raise ValueError(
            "nothing to choose an epoch by: expected validation demonstrations or a reward model"
        )
    return epochs[losses.index(min(losses))]


def _publish(checkpoint: Path, out: Path) -> None:
    aside = out / "model.part"
    shutil.rmtree(aside, ignore_errors=True)
    save_policy(load_policy(checkpoint), load_tokenizer(checkpoint), aside)
    shutil.rmtree(out / "model", ignore_errors=True)
    aside.rename(out / "model")


def _write_json(path: Path, content: object) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
