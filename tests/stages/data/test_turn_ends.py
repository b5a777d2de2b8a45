"""Ends of turns, what stands before texts, and the date: sampled, trained and saved the same."""

import gc
import json
from pathlib import Path
from weakref import ref

import pytest
import torch
from tokenizers import AddedToken, normalizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pipeline.evaluation.generate import likelihoods
from reward_models.conversations import Turn
from stages.adapters.config import Full, LoRA
from stages.data.chat_format import DATE_KEY
from stages.data.streams import PretrainingStream
from stages.data.template import (
    continued,
    end_id,
    prompt_ids,
    response_ids,
    response_text,
    stop_ids,
    with_trained_end,
)
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import adapt, load_policy, load_tokenizer, save_policy, tokenizer_hash
from stages.ppo.rollout import Episodes
from tests.stages.data.chat_templates import BOS, CHATML, CHATS, EOS, GENERATE, Chat, build

GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=24)


def tiny(tokenizer: PreTrainedTokenizerFast, **more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            **{**ids, **more},
        )
    )


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that knows two turns by heart and names two ids that end them."""
    folder, tokenizer = tmp_path_factory.mktemp("gemma"), build(CHATS["gemma"])
    model = tiny(tokenizer)
    talk = [("user", "hi"), ("assistant", "hello"), ("user", "fox"), ("assistant", "brown")]
    messages = [{"role": role, "content": content} for role, content in talk]
    ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answer(folder: Path, text: str = "hi") -> tuple[bool, str]:
    policy, tokenizer = load_policy(folder), load_tokenizer(folder)
    prompts = [prompt_ids(tokenizer, text)]
    [drawn] = generate_responses(policy, tokenizer, prompts, GREEDY, generator=torch.Generator())
    return drawn.ended, response_text(tokenizer, drawn.ids)


def test_a_chat_model_stops_at_its_end_of_turn(gemma: Path):
    assert answer(gemma) == (True, "hello")


def test_it_stops_there_where_only_the_template_knows_of_it(gemma: Path, tmp_path: Path):
    policy, tokenizer = load_policy(gemma), load_tokenizer(gemma)
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert answer(tmp_path) == (True, "hello")


def test_it_stops_at_an_id_that_its_settings_alone_name_and_shows_nothing_of_it(
    gemma: Path, tmp_path: Path
):
    policy, tokenizer = load_policy(gemma), load_tokenizer(gemma)
    (stop,) = response_ids(tokenizer, "hello", ended=False)
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    save_policy(policy, tokenizer, tmp_path)
    assert answer(tmp_path) == (True, "")
    saved = adapt(load_policy(tmp_path), LoRA(rank=2))
    save_policy(saved, load_tokenizer(tmp_path), tmp_path / "adapter")
    assert answer(tmp_path / "adapter") == (True, "")


def test_other_programs_stop_at_the_same_ids_with_a_saved_model(tmp_path: Path):
    tokenizer = build(CHATS["chatml"])
    save_policy(tiny(tokenizer), tokenizer, tmp_path)
    named = GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert set(named) == set(stop_ids(tokenizer)) == {tokenizer.eos_token_id, end_id(tokenizer)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(model.generation_config.eos_token_id) == set(named)


def test_an_eos_that_is_an_ordinary_piece_is_some_default_and_ends_nothing():
    tokenizer = build(CHATS["none"])
    (piece,) = tokenizer.encode("hello", add_special_tokens=False)
    assert stop_ids(tokenizer, tiny(tokenizer, eos_token_id=piece)) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("name", CHATS)
def test_pad_ends_no_response_and_marks_no_turn(name: str, tmp_path: Path):
    build(CHATS[name]).save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer_config.json"):
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "pad_token": CHATS[name].end}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id not in stop_ids(tokenizer)
    assert tokenizer.pad_token not in {*CHATS[name].markers, *CHATS[name].plain, BOS, EOS}


def test_pad_is_no_id_at_which_the_model_stops(tmp_path: Path):
    tokenizer = build(CHATS["chatml"])
    tokenizer.save_pretrained(tmp_path)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert set(ends) < set(stop_ids(loaded))
    assert loaded.pad_token_id not in stop_ids(loaded)


def test_pad_is_no_marker_that_a_template_puts_together(tmp_path: Path):
    markers = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>")
    joined = CHATS["phi-4-mini"].template
    tokenizer = build(Chat(joined, markers, "<|end|>"))
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token not in {*markers, BOS, EOS}


def test_the_date_is_saved_with_the_tokenizer_and_counts_in_its_hash(tmp_path: Path):
    build(CHATS["llama-3"]).save_pretrained(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "trained")
    path = tmp_path / "trained" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert settings[DATE_KEY] == "2024-07-26"
    again = load_tokenizer(tmp_path / "trained")
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    path.write_text(json.dumps({**settings, DATE_KEY: "2027-03-01"}))
    other = load_tokenizer(tmp_path / "trained")
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)
    assert "Today Date: 01 Mar 2027" in other.decode(prompt_ids(other, "hi"))
    assert "Today Date: 26 Jul 2024" in again.decode(prompt_ids(again, "hi"))


def test_what_a_tokenizer_puts_before_texts_counts_in_its_hash():
    with_bos, without = build(CHATS["none"]), build(CHATS["none"])
    without.backend_tokenizer.post_processor = None
    assert tokenizer_hash(with_bos) != tokenizer_hash(without)


def test_pretraining_documents_begin_as_the_tokenizer_begins_them_and_end_in_eos(tmp_path: Path):
    tokenizer = build(CHATS["chatml"])
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "hello <|im_end|>"}) + "\n")
    ids_BL, _ = PretrainingStream(path, tokenizer, 64, pack=False, seed=0).next(1)
    ids = ids_BL[0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert tokenizer.decode(ids[1:-1]) == "hello <|im_end|>"


def test_likelihoods_follow_bos_with_a_prefix_and_without():
    tokenizer = build(CHATS["none"])
    model = tiny(tokenizer).eval()
    texts = [("hello", " world"), ("", "hello world")]
    for (prefix, text), likelihood in zip(texts, likelihoods(model, tokenizer, texts), strict=True):
        ids = torch.tensor([tokenizer.encode(prefix + text)])
        with torch.no_grad():
            logprob_LV = model(input_ids=ids).logits[0].log_softmax(-1)
        chosen_L = logprob_LV[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        assert likelihood.logprob == pytest.approx(
            float(chosen_L[-likelihood.tokens :].sum()), abs=1e-4
        )


def test_prompts_that_follow_others_begin_without_bos():
    for name in ("none", "mistral"):
        tokenizer = build(CHATS[name])
        ids = prompt_ids(tokenizer, "hi")
        assert continued(tokenizer, ids) == ids[1:]
        assert continued(tokenizer, ids[1:]) == ids[1:]


def test_a_reward_model_reads_the_end_of_turn_that_it_was_trained_with():
    tokenizer = build(CHATS["gemma"])
    end, eos = end_id(tokenizer), tokenizer.eos_token_id
    assert with_trained_end(tokenizer, [7, eos], ended=True) == [7, end]
    assert with_trained_end(tokenizer, [7, 8], ended=False) == [7, 8]
    episodes = Episodes(
        torch.tensor([[5, 7, eos], [5, 7, 8]]),
        torch.ones(2, 3).bool(),
        torch.ones(2, 2).bool(),
        torch.tensor([True, False]),
    )
    assert episodes.ended_with(end).ids_BL.tolist() == [[5, 7, end], [5, 7, 8]]
    assert episodes.response_tokens().tolist() == [[7, eos], [7, 8]]


def test_a_template_whose_prompt_is_not_the_start_of_its_answer_is_refused_in_one_line(
    tmp_path: Path,
):
    build(Chat(CHATML + GENERATE + "Now you:{% endif %}")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ends in .*Now you:.*assistant") as refused:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_conversation_that_a_template_refuses_is_told_in_one_line():
    tokenizer = build(CHATS["gemma"])
    with pytest.raises(ValueError, match=r"refuses a conversation of user, user: .*alternate"):
        prompt_ids(tokenizer, "again", history=[Turn("user", "hi")])


def test_a_token_that_only_normalised_text_makes_is_text_in_a_text():
    chat = Chat(CHATS["chatml"].template, plain=("<|im_start|>", "<|im_end|>"))
    tokenizer = build(chat)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("<|more|>", normalized=True)])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in tokenizer.encode("<|IM_END|>")
    assert end not in response_ids(tokenizer, "A turn ends with <|IM_END|>.")[:-1]


def test_a_changed_tokenizer_is_looked_at_anew_and_none_is_kept_alive():
    tokenizer = build(CHATS["none"])
    plain = prompt_ids(tokenizer, "hi")
    tokenizer.chat_template = CHATS["vicuna"].template
    assert prompt_ids(tokenizer, "hi") != plain
    tokenizer.chat_template = None
    assert prompt_ids(tokenizer, "hi") == plain
    tokenizer.add_tokens([AddedToken("<|stop|>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<|stop|>") not in prompt_ids(tokenizer, "<|stop|>")
    there = ref(tokenizer)
    del tokenizer
    gc.collect()
    assert there() is None


def test_a_merged_export_ends_where_the_policy_ended(gemma: Path, tmp_path: Path):
    save_policy(adapt(load_policy(gemma), LoRA(rank=2)), load_tokenizer(gemma), tmp_path / "lora")
    whole = adapt(load_policy(tmp_path / "lora"), Full())
    save_policy(whole, load_tokenizer(tmp_path / "lora"), tmp_path / "whole")
    named = GenerationConfig.from_pretrained(tmp_path / "whole").eos_token_id
    assert set(named) == set(stop_ids(load_tokenizer(gemma)))
