"""Tasks of several sizes to label in the browser."""

from reward_models.records import RankingTask, Response

PASSAGE = (
    "The lighthouse of Orrin stands on the north cape since 1874. It was built by Mara Tolk, who "
    "also drew the harbour. Its lamp was changed from oil to electricity in 1921.\n\n"
    "In 1987 the last keeper left, and the light has been automatic since then."
)
TEXTS = (
    "It was built by **Mara Tolk** in 1874, and she also drew the harbour.",
    "The lighthouse was built in 1901 by a French company that later went bankrupt.",
    "Sure! Here is what I found:\n\n1. It stands on the *north cape*.\n2. It was built in 1874.\n"
    "3. The lamp became electric in 1921.\n\nLet me know if you need more.",
    "I do not know.",
    "Lighthouses are towers with lamps. " * 14,
    "```python\ndef built_by(place):\n    return 'Mara Tolk'  # from the text\n```",
    "| What | When |\n|---|---|\n| built | 1874 |\n| electric | 1921 |",
    "Why would you even ask that? Read it yourself.",
    "Mara Tolk built it. The water boils at $T = 100^\\circ C$, by the way.",
)


def task(name: str, num_responses: int, *, with_context: bool = False) -> RankingTask:
    """A closed question about a lighthouse with so many answers to it."""
    responses = tuple(
        Response(f"{name}-{i}", text, f"secret-model-{i % 3}", {"temperature": 1.0})
        for i, text in enumerate(TEXTS[:num_responses])
    )
    prompt = "Who built the lighthouse of Orrin, and when?\n\nAnswer in *one* sentence."
    context = PASSAGE if with_context else None
    return RankingTask(name, prompt, responses, context=context, category="closed_qa")
