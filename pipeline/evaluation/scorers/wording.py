"""How models decline: phrases by which a response says that it has no answer."""

import re

# "The text does not say.", "Not in background." (SQuAD in Ouyang et al. 2022), "I have no comment".
_ABSTENTIONS = re.compile(
    r"\b(?:"
    r"(?:does|do|did)(?: not|n.t) (?:say|state|mention|specify)"
    r"|(?:is|are|was|were)(?: not|n.t) (?:stated|given|mentioned|specified|provided)"
    r"|not in (?:the )?(?:background|text|passage|context)"
    r"|no (?:comment|answer|information)"
    r"|(?:not|n.t) enough information"
    r"|(?:can(?:not|.t| not)|could(?: not|n.t)|unable to) (?:be )?(?:answer|tell|determine|find)"
    r"|(?:do(?: not|n.t)) know"
    r"|unanswerable|unknown"
    r")",
    re.IGNORECASE,
)


def abstains(response: str) -> bool:
    """Whether the response says, by one of the listed phrases, that it has no answer."""
    return _ABSTENTIONS.search(response) is not None


def normalised(response: str) -> str:
    """Lower case, without outer punctuation and repeated white space: equal means same words."""
    return " ".join(response.lower().split()).strip(" .,;:!?\"'")
