"""Log-probabilities in chunks are those of all logits at once, and hold a chunk of logits alone."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from reward_models.compat import TorchDispatchMode, storages
from stages import chunked_logprobs
from stages.chunked_logprobs import (
    IGNORED,
    in_place_of_logits,
    logprobs_and_entropy,
    returns_what_it_unembeds,
    summed_nll,
)
from stages.data import supervised
from stages.data.supervised import Example, response_loss
from stages.ppo import losses

N, D, V = 70, 16, 300
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
SHAPE |= {"intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8}


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that operations make."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(s.nbytes() // 4 for s in storages(output))])
        return output


def inputs() -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    state_ND = torch.randn(N, D, requires_grad=True)
    return state_ND, nn.Linear(D, V, bias=False), torch.randint(V, (N,)), torch.randn(N) / N


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 32, N])
def test_chunks_give_the_same_numbers_and_gradients(chunk: int, temperature: float) -> None:
    state_ND, head, token_N, weight_N = inputs()
    logits_NV = head(state_ND)
    expected_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
    (expected_N * weight_N).sum().backward()
    gradients = [state_ND.grad, head.weight.grad]
    state_ND.grad = head.weight.grad = None
    in_chunks = logprobs_and_entropy(
        head.forward,
        state_ND[None],
        token_N=token_N,
        temperature=temperature,
        chunk=chunk,
        with_entropy=True,
    )[0]
    (in_chunks[:, 0] * weight_N).sum().backward()
    torch.testing.assert_close(in_chunks[:, 0], expected_N, rtol=0, atol=1e-6)
    entropy_N = losses.entropy(logits_NV.detach(), temperature)
    torch.testing.assert_close(in_chunks[:, 1], entropy_N, rtol=0, atol=5e-6)
    for ours, other in zip([state_ND.grad, head.weight.grad], gradients, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1.4e-6)


def test_no_tensor_is_as_wide_as_the_vocabulary_and_as_long_as_the_tokens() -> None:
    state_ND, head, token_N, _ = inputs()
    with Largest() as in_chunks:
        one = partial(logprobs_and_entropy, head.forward, token_N=token_N, temperature=1.0)
        one(state_ND[None], chunk=8)[..., 0].sum().backward()
    with Largest() as at_once:
        losses.chosen_logprobs(head(state_ND), token_N, 1.0).sum().backward()
    assert in_chunks.numbers == max(V * D, 8 * V)  # the matrix's own gradient
    assert at_once.numbers >= N * V


def test_labels_that_are_ignored_do_not_count() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    ids_BL = torch.arange(24).view(2, 12)
    label_BL = ids_BL.masked_fill(torch.arange(12) < 5, IGNORED)
    logits_BLV = model(input_ids=ids_BL).logits
    logprob_BLV = logits_BLV[:, 4:-1].log_softmax(-1)
    expected = -logprob_BLV.gather(-1, ids_BL[:, 5:, None]).sum()
    with in_place_of_logits(model.lm_head, partial(summed_nll, label_BL=label_BL, chunk=3)):
        nats = model(input_ids=ids_BL).logits
    assert nats.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(model(input_ids=ids_BL).logits, logits_BLV)  # it is as it was


def test_logits_that_are_capped_are_no_output_of_the_unembedding() -> None:
    plain = LlamaForCausalLM(LlamaConfig(**SHAPE))
    capped = Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=0.01))
    assert returns_what_it_unembeds(plain, plain.lm_head)
    assert not returns_what_it_unembeds(capped, capped.lm_head)


def test_a_validation_loss_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    examples = [Example(list(range(2, 9 + k)), 3 + k) for k in range(4)]
    at_once = response_loss(model, examples, 0, batch_size=2)
    few = partial(chunked_logprobs.tokens_at_once, most=3 * 40)
    monkeypatch.setattr(supervised, "tokens_at_once", few)
    assert response_loss(model, examples, 0, batch_size=2) == pytest.approx(at_once, rel=1e-6)
