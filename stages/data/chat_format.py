"""The format of a tokenizer's chat template, derived from what the template renders.

    prompt        the rendered turns with the template's generation prompt, and text that the
                  template itself renders before an answer (an empty think block)
    response      white space that it renders before an answer, the answer, the end of turn

So a response starts where a model starts to generate: never with a template's own text, but with
its white space. The prompt of a template without a generation prompt ends where the answer would
begin. A template that opens an answer with more than it renders of a past one (`<think>`) opens
prompts so.

The end of turn is the token after the last answer; without one, the token after an earlier answer,
be it only the next turn's first; where that is plain text too, EOS. Responses are trained to end
with it; sampling also stops at the one after an earlier answer.

A template that prints today's date prints `DATE` instead, or the date in the tokenizer's own
configuration: the same conversation has the same ids on every day.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from stages.data.control_tokens import ControlTokens

DATE = "2024-07-26"  # the date that Llama's templates give where they know none
DATE_KEY = "template_date"  # key of another in a tokenizer's configuration
ENDS_KEY = "stop_token_ids"  # key of the ids that its model ends a turn with
_ANSWER = "\U000ff000"  # placeholder of the answer; private, so that no template changes it
_DIRECTIVES = "aAbBcCdDeFgGhHIjmMnprRStTuUVwWxXyYzZ"  # of strftime
_ROLES = ("system", "user", "assistant", "tool", "function", "ipython", "observation", "developer")

Message = dict[str, str]
USER = ("user",)
LONGER = ("user", "assistant", "user")


@dataclass(frozen=True, slots=True)
class Opening:
    """The text between a conversation and its answer.

    The prompt is the rendered turns with `preface`, or, where there is `no_generation_prompt`, the
    template's text before an answer. The response begins with `space`.
    """

    preface: str
    space: str
    no_generation_prompt: bool = False


class ChatFormat:
    """The text that a chat template renders around contents; ValueError where it omits one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        template = str(tokenizer.get_chat_template())
        self.template = frozen_in_time(template, template_date(tokenizer))
        self._openings: dict[tuple[str, ...], Opening] = {}
        self.takes_system = self._takes_system()
        short, longer = self._written(USER), self._written(LONGER)
        self.prompt_end = self.prompt(_contents(USER)).rpartition(_content(0))[2]
        last, earlier = self._end(short[2]), self._end(longer[2] if longer else "")
        self.end = earlier if last is None and not short[2].strip() else last  # None: EOS
        self.ends = {last, earlier} - {None}
        written = set(_tokens_in("".join([*short, *longer, *self._other_roles()]), tokenizer))
        answers = set(_tokens_in(self._answers_own(), tokenizer))
        literal = {t for t in added_tokens(tokenizer) if len(t) > 2 and t in template}
        self.control = ControlTokens(tokenizer, written | literal)
        # An answer may hold what the template leaves to the model, such as <think>.
        own = ControlTokens(tokenizer, written - answers)
        self.control_in_answers = self.control if own.strings == self.control.strings else own
        self.markers = written | literal

    @property
    def space(self) -> str:
        """The white space that a response begins with."""
        return self.opening(USER).space

    def opening(self, roles: tuple[str, ...]) -> Opening:
        """Return the text before the answer to turns of these roles."""
        if roles not in self._openings:
            self._openings[roles] = self._opening(roles)
        return self._openings[roles]

    def prompt(self, turns: list[Message]) -> str:
        """Return the rendered turns up to where the response begins."""
        opening = self.opening(tuple(turn["role"] for turn in turns))
        if opening.no_generation_prompt:
            before = self._around_answer(turns)[0]
            return before.removesuffix(opening.space)
        return self._render(turns, generation_prompt=True) + opening.preface

    def _opening(self, roles: tuple[str, ...]) -> Opening:
        turns = _contents(roles)
        opened = self._render(turns, generation_prompt=True)
        before, _ = self._around_answer(turns)
        if before.startswith(opened):
            own = before.removeprefix(opened)
            preface = own[: len(own) - len(_spaces_at_end(own))] if own.strip() else ""
            return Opening(preface, own.removeprefix(preface))
        if opened == self._render(turns):
            return Opening("", _spaces_at_end(before), no_generation_prompt=True)
        if opened.startswith(before.rstrip()):
            return Opening("", "")
        raise ValueError(
            f"the chat template's generation prompt ends in {opened[-40:]!r}, but an answer comes "
            f"after {before[-40:]!r}; expected the one to be the start of the other"
        )

    def _around_answer(self, turns: Sequence[Message]) -> tuple[str, str]:
        whole = self._render([*turns, {"role": "assistant", "content": _ANSWER}])
        before, there, after = whole.rpartition(_ANSWER)
        if not there:
            raise ValueError("the chat template does not render an assistant's answer")
        return before, after

    def _render(self, turns: Sequence[Message], *, generation_prompt: bool = False) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(turns),
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses a conversation of {roles}: {error}"
            ) from None
        return str(rendered)

    def _takes_system(self) -> bool:
        """Return true where a system turn is rendered, not as a user's or assistant's."""
        first, second = _content(0), {"role": "user", "content": _content(1)}
        try:
            written = self._render([{"role": "system", "content": first}, second])
        except ValueError:
            return False
        if first not in written:
            return False
        for role in ("user", "assistant"):
            try:
                if self._render([{"role": role, "content": first}, second]) == written:
                    return False
            except ValueError:
                continue
        return True

    def _written(self, roles: tuple[str, ...]) -> list[str]:
        """Return the template's texts before, between and after contents; none where it refuses."""
        try:
            whole = self._render([*_contents(roles), {"role": "assistant", "content": _ANSWER}])
            opened = self._render(_contents(roles), generation_prompt=True)
        except ValueError:
            if roles == USER:
                raise
            return []
        parts = [whole]
        for content in (*map(_content, range(len(roles))), _ANSWER):
            if content not in parts[-1]:
                raise ValueError("the chat template leaves out a turn of user or assistant")
            parts[-1:] = parts[-1].split(content, 1)
        return [*parts, opened.rpartition(_content(len(roles) - 1))[2]]

    def _end(self, after: str) -> int | None:
        """Return the id of the token that this text begins with; None for plain text and BOS."""
        tokens = sorted(added_tokens(self.tokenizer), key=len, reverse=True)
        ends = (token for token in tokens if after.lstrip().startswith(token))
        end = next(ends, self.tokenizer.bos_token)
        if end == self.tokenizer.bos_token:
            return None
        return cast(int, self.tokenizer.convert_tokens_to_ids(end))

    def _answers_own(self) -> str:
        """Return the template's text inside of an answer, before its content."""
        opened = self._render(_contents(USER), generation_prompt=True)
        header = self._around_answer(_contents(USER))[0].rstrip()
        begun = opened.removeprefix(header) if opened.startswith(header) else ""
        return self.opening(USER).preface + begun

    def _other_roles(self) -> Iterator[str]:
        """Yield the template's texts for the roles that it has beside user and assistant."""
        for role in _ROLES:
            try:
                yield self._render([{"role": "user", "content": ""}, {"role": role, "content": ""}])
                yield self._render([{"role": role, "content": ""}, {"role": "user", "content": ""}])
            except ValueError:
                continue


def template_date(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the date that the chat template prints."""
    return str(tokenizer.init_kwargs.get(DATE_KEY, DATE))


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return true where the chat template prints a date."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def frozen_in_time(template: str, day: str) -> str:
    """Return the template with a fixed clock, at the beginning of `day`."""
    if "strftime_now" not in template:
        return template
    moment = date.fromisoformat(day)
    formatted = "format"
    for letter in _DIRECTIVES:
        value = moment.strftime(f"%{letter}").replace("\\", "").replace("'", "")
        formatted += f".replace('%{letter}', '{value}')"
        formatted += f".replace('%-{letter}', '{value.lstrip('0') or '0'}')"
    # The line break is the block's, by the options that templates are rendered with.
    return f"{{% macro strftime_now(format) %}}{{{{ {formatted} }}}}{{% endmacro %}}\n{template}"


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the added tokens that are not white space."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return [content for content in added if content.strip()]


def _content(index: int) -> str:
    """Return the placeholder of the content of the turn at this index."""
    return chr(0xFF001 + index)


def _contents(roles: Sequence[str]) -> list[Message]:
    return [{"role": role, "content": _content(index)} for index, role in enumerate(roles)]


def _spaces_at_end(text: str) -> str:
    """Return the spaces after the last line break or letter: they join the next token."""
    return text[len(text.rstrip(" \t")) :]


def _tokens_in(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    return (token for token in added_tokens(tokenizer) if token in text)
