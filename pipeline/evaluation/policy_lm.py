"""A policy as lm-eval's language model; imported only where it is used, as lm-eval is an extra."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from stages.progress import Report, Step

_AT_ONCE = 32  # batches between two reports


class PolicyLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """Evaluates lm-eval's requests in portions, so that a long task shows its progress."""

    def __init__(self, report: Report, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.report = report

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return log p of each continuation, and whether greedy decoding would give it."""
        return self._in_portions(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[Any]:
        """Return log p of each whole text."""
        return self._in_portions(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return the policy's responses, up to each request's stop words."""
        return self._in_portions(super().generate_until, requests, disable_tqdm)

    def _in_portions(
        self, evaluate: Callable[..., list[Any]], requests: Sequence[Any], disable_tqdm: bool
    ) -> list[Any]:
        size, results = _AT_ONCE * int(self.batch_size), list[Any]()
        for start in range(0, len(requests), size):
            results += evaluate(list(requests[start : start + size]), disable_tqdm=disable_tqdm)
            self.report(Step(len(results), len(requests)))
        return results
