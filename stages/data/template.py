"""Conversations and texts as token ids and back, the same way at every stage.

A tokenizer with a chat template encodes a conversation by it, turn by turn. Without one, it encodes
BOS (if it has one), the prompt and a line break; of a longer conversation, the turns as `User: ...`
and `Assistant: ...`, as in the paper's chat prompts. A context passage comes before the prompt in
the user's turn.

A response's ids end with the end of turn if it ended. They are those of the text as it follows a
prompt, without surrounding white space, so that

    response_text(response_ids(text)) == text.strip()      where the tokenizer can encode the text
    response_ids(response_text(ids)) == ids                where ids are those of a text

No text turns into a control token, whatever its content (see `control_tokens`).
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary, proxy

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.conversations import Turn
from reward_models.records import Demonstration, Prompt, RankingTask
from stages.data.chat_format import ENDS_KEY, ChatFormat, Message, added_tokens, template_date
from stages.data.control_tokens import ControlTokens, Marks

_NAMES = {"user": "User", "assistant": "Assistant"}


class _Format:
    """The facts about a tokenizer that encoding needs, derived once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        weak = cast(PreTrainedTokenizerBase, proxy(tokenizer))  # else the cache keeps it in memory
        chat = None if tokenizer.chat_template is None else ChatFormat(weak)
        self.chat = chat
        self.control = chat.control if chat else ControlTokens(weak)
        self.control_in_answers = chat.control_in_answers if chat else self.control
        self.added = ControlTokens(weak, added_tokens(weak))
        self.before_answer = chat.prompt_end if chat else "\n"
        self.before_answer_ids = _encode(tokenizer, self.before_answer)
        self.space = chat.space if chat else ""
        self.bos = _bos(tokenizer)
        eos = _eos(tokenizer)
        self.end = eos if chat is None or chat.end is None else chat.end
        ends = chat.ends if chat else set()
        self.ends = frozenset({eos, *ends, *tokenizer.init_kwargs.get(ENDS_KEY, ())})


def user_text(prompt: str, context: str | None = None) -> str:
    """Return the user's turn: the passage, a blank line, the prompt."""
    return f"{context}\n\n{prompt}" if context else prompt


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    context: str | None = None,
    history: Sequence[Turn] = (),
) -> list[int]:
    """Return token ids up to where the response begins; `history` are the turns before the prompt.

    A template without system turns gets their text at the beginning of the next user's turn.
    Raises ValueError where the template refuses the conversation.
    """
    fmt = _format(tokenizer)
    turns = [*history, Turn("user", user_text(prompt, context))]
    if fmt.chat is None:
        return [*fmt.bos, *text_ids(tokenizer, written_out(turns) + "\n")]
    if not fmt.chat.takes_system:
        turns = without_system(turns)
    texts = [turn.content for turn in turns]
    if not any(fmt.control.found_in(text) for text in texts):
        return _encode(tokenizer, fmt.chat.prompt([turn.to_json() for turn in turns]))
    marks = Marks.outside(texts)
    rendered = fmt.chat.prompt([_hidden(fmt, turn, marks) for turn in turns])
    return fmt.control.encode(rendered, marks)


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, record: Demonstration | Prompt | RankingTask
) -> list[int]:
    """Return the `prompt_ids` of a record."""
    return prompt_ids(tokenizer, record.prompt, record.context, record.history)


def response_ids(
    tokenizer: PreTrainedTokenizerBase, response: str, *, ended: bool = True
) -> list[int]:
    """Return token ids of the response after any prompt; with the end of turn if it `ended`."""
    fmt = _format(tokenizer)
    text = response.strip()
    if not text and ended:
        return [fmt.end]
    ids = _following_ids(tokenizer, fmt, fmt.control_in_answers, fmt.space + text)
    if fmt.added.found_in(text) and response_text(tokenizer, ids) != text:
        # A tokenizer that puts a space after its tokens cannot encode them inside of a text.
        ids = _following_ids(tokenizer, fmt, fmt.added, fmt.space + text)
    return [*ids, fmt.end] if ended else ids


def response_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of a response's ids before any end of turn, without surrounding space."""
    ends = _format(tokenizer).ends
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(
        ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids of a text that is no conversation, alone."""
    return _text_ids(tokenizer, _format(tokenizer).control_in_answers, text)


def document_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids of a document: those of its text after BOS, if the tokenizer has one."""
    return [*_format(tokenizer).bos, *text_ids(tokenizer, text)]


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer itself puts before every text: BOS, or none."""
    return list(_format(tokenizer).bos)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a response in training: the template's end of turn, or EOS."""
    return _format(tokenizer).end


def stop_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> tuple[int, ...]:
    """Return every id that ends a response, in order: EOS, the end of turn, the model's own."""
    ends = _format(tokenizer).ends
    settings = None if model is None else model.generation_config
    if settings is None:
        return tuple(sorted(ends))
    return tuple(sorted(ends | named_ends(tokenizer, settings.eos_token_id)))


def named_ends(tokenizer: PreTrainedTokenizerBase, eos: object) -> set[int]:
    """Return the ids that a model's configuration names as `eos_token_id`, one or a list.

    A single one that is an ordinary piece of text is ignored: it is an architecture's default,
    which does not belong to this tokenizer.
    """
    if eos is None:
        return set()
    if isinstance(eos, int):
        return {eos} if eos in tokenizer.added_tokens_decoder else set()
    if not isinstance(eos, list | tuple) or not all(isinstance(one, int) for one in eos):
        raise ValueError(f"eos_token_id is {eos!r}, expected an id or a list of ids")
    return set(eos)


def with_trained_end(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, ended: bool
) -> list[int]:
    """Return a sampled response as reward models are trained on it: ended by the end of turn.

    A policy may stop at another id, which no reward model was trained on.
    """
    return [*ids[:-1], end_id(tokenizer)] if ended else list(ids)


def continued(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Return ids that follow others: without the BOS that they begin with."""
    bos = bos_ids(tokenizer) or [tokenizer.bos_token_id]
    return list(ids[len(bos) :] if list(ids[: len(bos)]) == bos else ids)


def template_markers(tokenizer: PreTrainedTokenizerBase) -> Collection[str]:
    """Return the added tokens that the chat template renders, or might."""
    chat = _format(tokenizer).chat
    return () if chat is None else chat.markers


def written_out(turns: Sequence[Turn]) -> str:
    """Return a conversation as one text: system texts, then one turn, or all with their names."""
    system = [turn.content for turn in turns if turn.role == "system"]
    others = [turn for turn in turns if turn.role != "system"]
    named = [f"{_NAMES[turn.role]}: {turn.content}" for turn in others]
    return "\n\n".join([*system, others[0].content if len(others) == 1 else "\n".join(named)])


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns of user and assistant; system texts come before the next user's text."""
    others, system = list[Turn](), list[str]()
    for turn in turns:
        if turn.role == "system":
            system.append(turn.content)
        elif turn.role == "user" and system:
            others.append(Turn("user", "\n\n".join([*system, turn.content])))
            system = []
        else:
            others.append(turn)
    return others


def _hidden(fmt: _Format, turn: Turn, marks: Marks) -> Message:
    answer = turn.role == "assistant"
    pattern = (fmt.control_in_answers if answer else fmt.control).pattern
    return {"role": turn.role, "content": fmt.control.hidden(turn.content, marks, pattern)}


def _following_ids(
    tokenizer: PreTrainedTokenizerBase, fmt: _Format, control: ControlTokens, text: str
) -> list[int]:
    """Return ids of a text as it follows a prompt, never as a tokenizer encodes a beginning."""
    encode = partial(_text_ids, tokenizer, control)
    before = fmt.before_answer_ids
    ids = encode(text, after=fmt.before_answer)
    # A text that grows together with the prompt's end is cut there instead.
    return ids[len(before) :] if ids[: len(before)] == before else encode(text)


def _text_ids(
    tokenizer: PreTrainedTokenizerBase, control: ControlTokens, text: str, *, after: str = ""
) -> list[int]:
    if not control.found_in(text):
        return _encode(tokenizer, after + text)
    marks = Marks.outside([text])
    return control.encode(after + control.hidden(text, marks), marks)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    whole = list(tokenizer.encode("a", add_special_tokens=True))
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next(at for at in starts if whole[at : at + len(bare)] == bare)]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError(
            f"tokenizer '{tokenizer.name_or_path}' has no EOS token; a response could not end"
        )
    return tokenizer.eos_token_id


_formats: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, _Format]] = WeakKeyDictionary()


def _format(tokenizer: PreTrainedTokenizerBase) -> _Format:
    """Return the facts about a tokenizer, derived again after it has changed."""
    key = (
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        len(tokenizer),
        tokenizer.num_special_tokens_to_add(),
        template_date(tokenizer),
        tokenizer.init_kwargs.get(ENDS_KEY),
    )
    fmt = _formats.get(tokenizer)
    if fmt is None or fmt[0] != key:
        fmt = _formats[tokenizer] = (key, _Format(tokenizer))
    return fmt[1]
