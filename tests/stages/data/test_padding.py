"""Rectangles of ragged sequences and the positions that belong to them."""

import pytest
import torch

from stages.data.padding import pad_right, positions


def test_the_mask_counts_exactly_the_real_tokens_even_where_pad_is_one_of_them():
    ids_BL, mask_BL = pad_right([[7, 0, 8], [0]], pad_id=0)
    assert ids_BL.tolist() == [[7, 0, 8], [0, 0, 0]]
    assert mask_BL.tolist() == [[True, True, True], [True, False, False]]


def test_positions_count_from_the_first_real_token_on_either_side():
    mask_BL = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask_BL).tolist() == [[0, 0, 0, 1], [0, 1, 2, 0]]


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="the batch is empty"):
        pad_right([], pad_id=0)
