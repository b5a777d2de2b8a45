"""The names of judges, models that rank in place of people: no person can have one."""

from typing import Literal

Use = Literal["people", "judges", "both"]  # people: everybody who is no model
JUDGE = "judge:"  # begins the name of every model that ranks, and of nobody else


def is_judge(annotator: str) -> bool:
    """Return true for the name of a model that ranks in place of a person."""
    return annotator.startswith(JUDGE)


def check_name(annotator: str, kind: str) -> None:
    """Raise ValueError where a judge has a person's name, or anybody else a judge's."""
    if (kind == "judge") != is_judge(annotator):
        raise ValueError(
            f"'annotator' is '{annotator}' and 'kind' is '{kind}'; expected a name that begins "
            f"with '{JUDGE}' for a judge, and for nobody else"
        )
