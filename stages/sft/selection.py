"""The choice of the supervised stage's epoch.

Validation loss is lowest after about one epoch, while a reward model's score and what people prefer
still rise. So the paper chooses by the mean score of the reward model on responses to validation
prompts (Ouyang et al. 2022, appendix C.1); before there is a reward model, the lowest validation
loss chooses. Nothing is trained again: the weights of every epoch are saved.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from reward_models.atomic_files import write_json, written_aside
from reward_models.context_limit import context_limit
from reward_models.model_files import ADAPTER_CONFIG, base_name
from reward_models.records import Prompt
from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.data.template import conversation_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.generation.score import (
    Scorer,
    load_scorer,
    require_readable,
    score_responses,
    scorer_limits,
)
from stages.models import device, load_policy, load_tokenizer, save_policy, to_device
from stages.precision import resolved
from stages.precision_config import AUTO, Precision
from stages.progress import Report, Step, announce
from stages.prompt_lengths import require_fit

CHECKPOINTS = "checkpoints"
SELECTION = "selection.json"
_TO_RESUME = ("optimizer*", "scheduler*", "rng_state*", "scaler*")


@dataclass(frozen=True, slots=True)
class Epoch:
    """The measures of one epoch; `validation_loss` is in nats per response token."""

    epoch: int
    validation_loss: float | None
    mean_score: float | None = None
    share_ended: float | None = None
    num_prompts: int | None = None


def choose_epoch(
    trained: Path,
    *,
    reward_model: str | Path | None,
    selection_prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    out: Path,
    seed: int,
    report: Report,
    last: bool = False,
    precision: Precision = AUTO,
) -> None:
    """Write the best epoch of `trained`, a folder of `train_sft`, to out/model, with the reasons.

    With a reward model, each epoch responds to every selection prompt once, from the same random
    numbers; `last` takes the last epoch whatever the others are like. Raises ValueError without
    checkpoints, or without anything to choose by.
    """
    checkpoints = epoch_checkpoints(trained / CHECKPOINTS)
    if not checkpoints:
        raise ValueError(f"{trained / CHECKPOINTS}: no checkpoint there; expected one an epoch")
    epochs = _with_validation_losses(checkpoints)
    if reward_model is not None:
        if not selection_prompts:
            raise ValueError("a reward model is to choose the epoch, but there are no prompts")
        limits = [context_limit(checkpoints[0]), *scorer_limits(reward_model)]
        tokenizer = load_tokenizer(checkpoints[0])
        require_fit(tokenizer, selection_prompts, sampling.max_new_tokens, limits, "select")
        weights = resolved(precision, device()).frozen
        scorer = load_scorer(reward_model, weights).to(device())
        for index, checkpoint in enumerate(checkpoints):
            announce(
                report,
                f"sampling {len(selection_prompts)} responses of epoch {index + 1} of "
                f"{len(epochs)}",
            )
            epochs[index] = _with_score(
                epochs[index], checkpoint, scorer, selection_prompts, sampling, seed, weights
            )
            metrics = {"sft/mean_score": epochs[index].mean_score or 0.0}
            report(Step(index + 1, len(epochs), metrics))
    best = epochs[-1] if last else _best(epochs)
    criterion = "validation loss" if reward_model is None else "reward model's mean score"
    chosen = checkpoints[best.epoch - 1]
    is_adapter = (chosen / ADAPTER_CONFIG).is_file()  # or else its weights are copied as they are
    copied = resolved(precision, device()).frozen if is_adapter else FLOAT32
    with written_aside(out / "model") as aside:
        save_policy(load_policy(chosen, weights=copied), load_tokenizer(chosen), aside)
    selection = {
        "epoch": best.epoch,
        "chosen_by": "being the last" if last else criterion,
        "reward_model": None if reward_model is None else base_name(str(reward_model), out),
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    write_json(out / SELECTION, selection)


def epoch_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, one an epoch, in order."""
    return sorted(folder.glob("checkpoint-*"), key=_step)


def drop_resume_state(checkpoint: Path) -> None:
    """Remove what only a resumed run needs; weights, tokenizer and trainer state stay."""
    for pattern in _TO_RESUME:
        for path in checkpoint.glob(pattern):
            path.unlink()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _with_validation_losses(checkpoints: Sequence[Path]) -> list[Epoch]:
    """Return the epochs with the validation losses of the last checkpoint's trainer state."""
    state = json.loads((checkpoints[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    losses = {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}
    return [Epoch(number, losses.get(_step(path))) for number, path in enumerate(checkpoints, 1)]


def _with_score(
    epoch: Epoch,
    checkpoint: Path,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    seed: int,
    weights: WeightFormat,
) -> Epoch:
    tokenizer = load_tokenizer(checkpoint)
    require_readable(scorer, tokenizer, checkpoint)
    policy = load_policy(checkpoint, weights=weights)
    to_device(policy, device())
    prompt_ids = [conversation_ids(tokenizer, prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(seed)
    responses = generate_responses(policy, tokenizer, prompt_ids, sampling, generator=generator)
    scores = score_responses(
        scorer,
        tokenizer,
        prompts,
        [response_text(tokenizer, response.ids) for response in responses],
        batch_size=sampling.batch_size,
        ended=[response.ended for response in responses],
    )
    ended = fmean(float(response.ended) for response in responses)
    return replace(epoch, mean_score=fmean(scores), share_ended=ended, num_prompts=len(prompts))


def _best(epochs: Sequence[Epoch]) -> Epoch:
    """Return the epoch of highest mean score, else lowest validation loss; of equals the first."""
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
