"""Real prompts, demonstrations and human comparisons for configs/smollm2, from two public files.

    python -m pipeline.models.public_data SEED_TASKS QA_FEEDBACK [--out data/smollm2]

SEED_TASKS is `data/seed_tasks.jsonl` of github.com/yizhongw/self-instruct (175 tasks written by
people, Apache-2.0); QA_FEEDBACK see `stages/data/public_comparisons.py`. Nothing is downloaded.
Questions are divided once, by their order in the file, among comparisons, PPO and test; the
passages of those left over, from Wikipedia, are the pretraining texts.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.errors import run_module
from pipeline.cli.options import path
from reward_models.atomic_files import write_jsonl
from reward_models.records import Prompt
from stages.data.demonstrations import load_demonstrations
from stages.data.public_comparisons import ComparedQuestion, load_qa_feedback

OUT = Path("data/smollm2")


def write_public_data(
    seed_tasks: Path,
    qa_feedback: Path,
    out: Annotated[Path, typer.Option(parser=path, help="folder to write to")] = OUT,
    demonstrations: Annotated[
        int, typer.Option(help="seed tasks; corrected answers come on top")
    ] = 16,
    comparisons: Annotated[int, typer.Option(help="questions whose answers were ranked")] = 16,
    practice: Annotated[int, typer.Option(help="questions for PPO")] = 8,
    test: Annotated[int, typer.Option(help="questions for the evaluation")] = 8,
    context_words: Annotated[int, typer.Option(help="words of passages kept")] = 100,
) -> None:
    """Write demonstrations, tasks, rankings, prompts and texts as JSON lines."""
    written = load_demonstrations(str(seed_tasks))[:demonstrations]
    questions = load_qa_feedback(qa_feedback, context_words=context_words)
    wanted = comparisons + practice + test
    if len(questions) <= wanted:
        raise ValueError(f"{qa_feedback}: {len(questions)} questions, expected above {wanted}")
    ranked, practised = questions[:comparisons], questions[comparisons : comparisons + practice]
    tested = questions[comparisons + practice : wanted]
    corrected = [question.demonstration for question in ranked if question.demonstration]
    usable = [question for question in ranked if question.ranking]
    out.mkdir(parents=True, exist_ok=True)
    told = [demonstration.to_json() for demonstration in [*written, *corrected]]
    write_jsonl(out / "demonstrations.jsonl", told)
    write_jsonl(out / "tasks.jsonl", (question.task.to_json() for question in usable))
    rankings = (question.ranking.to_json() for question in usable if question.ranking)
    write_jsonl(out / "rankings.jsonl", rankings)
    for use, chosen in (("ranking", usable), ("ppo", practised), ("test", tested)):
        write_jsonl(out / f"{use}_prompts.jsonl", (_prompt(one).to_json() for one in chosen))
    whole = [question.task.context for question in load_qa_feedback(qa_feedback)[wanted:]]
    write_jsonl(out / "pretraining_texts.jsonl", ({"text": text} for text in whole if text))


def _prompt(question: ComparedQuestion) -> Prompt:
    task = question.task
    return Prompt(
        task.prompt, id=task.id, context=task.context, category=task.category, answerable=True
    )


if __name__ == "__main__":
    run_module(write_public_data)
