"""A conversation in the terminal stays one conversation, as long as the policy has room for it."""

from pipeline.models.chat import Conversation
from reward_models.conversations import Turn
from stages.data.template import prompt_ids
from tests.stages.data.chat_templates import CHATS, build
from tests.stages.data.test_turn_ends import tiny


def test_earlier_turns_are_asked_again_as_turns():
    tokenizer = build(CHATS["chatml"])
    talk = Conversation(tokenizer, tiny(tokenizer), 8)
    talk.add("hi", "hello")
    history = [Turn("user", "hi"), Turn("assistant", "hello")]
    ids = talk.prompt("fox?")
    assert ids == prompt_ids(tokenizer, "fox?", history=history)


def test_the_oldest_turns_go_where_there_is_no_room():
    tokenizer = build(CHATS["chatml"])
    talk = Conversation(tokenizer, tiny(tokenizer, max_position_embeddings=64), 8)
    for number in range(9):
        talk.add(f"say {number}", f"said {number}")
    ids = talk.prompt("and now?")
    assert len(ids) + 8 <= 64
    assert talk.history[-1].content == "said 8"
    assert ids == prompt_ids(tokenizer, "and now?", history=talk.history)
