"""A conversation in the terminal stays one conversation, as long as the policy has room for it."""

from pipeline.models.chat import Conversation
from reward_models.conversations import Turn
from stages.data.template import prompt_ids
from tests.stages.data.chat_templates import CHATS, build
from tests.stages.data.test_turn_ends import tiny


def test_earlier_turns_are_asked_again_as_turns():
    tokenizer, talk = build(CHATS["chatml"]), Conversation()
    policy = tiny(tokenizer)
    talk.add("hi", "hello")
    history = [Turn("user", "hi"), Turn("assistant", "hello")]
    asked = talk.asked(tokenizer, policy, "fox?", 8)
    assert asked == prompt_ids(tokenizer, "fox?", history=history)


def test_the_oldest_turns_go_where_there_is_no_room():
    tokenizer, talk = build(CHATS["chatml"]), Conversation()
    policy = tiny(tokenizer, max_position_embeddings=64)
    for number in range(9):
        talk.add(f"say {number}", f"said {number}")
    asked = talk.asked(tokenizer, policy, "and now?", 8)
    assert len(asked) + 8 <= 64
    assert talk.history[-1].content == "said 8"
    assert asked == prompt_ids(tokenizer, "and now?", history=talk.history)
