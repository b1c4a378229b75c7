"""Token dropout belongs to the item: no batch, padding or process changes it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.pretext.dropping import drop_tokens
from adaptmed.types import Tokens


def tokens_of(lengths, longest):
    valid = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return Tokens(torch.zeros(len(lengths), longest, 2), valid, torch.zeros(len(lengths), 2))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.floats(0.01, 0.95), st.integers(0, 99))
@settings(deadline=None)
def test_each_item_keeps_its_own_share_and_its_first_token(lengths, share, seed):
    tokens = tokens_of(lengths, 30)
    kept = drop_tokens(tokens, share, items=torch.arange(len(lengths)), seed=seed).valid
    assert not (kept & ~tokens.valid).any()
    for item, length in enumerate(lengths):
        wanted = max(1.0, torch.tensor(length * 1.0).mul(1 - share).round().item()) if length else 0
        assert kept[item].sum() == wanted
        assert length == 0 or kept[item, 0]


def test_the_choice_is_the_items_own_in_any_batch_and_padding():
    items = torch.tensor([5, 900, 41])
    together = drop_tokens(tokens_of([20, 12, 7], 20), 0.4, items=items, seed=3).valid
    alone = drop_tokens(tokens_of([12], 12), 0.4, items=items[1:2], seed=3).valid
    assert torch.equal(together[1, :12], alone[0])
    assert not torch.equal(together[0], drop_tokens(tokens_of([20], 20), 0.4, items=items[:1], seed=4).valid[0])
    assert not torch.equal(together[0], drop_tokens(tokens_of([20], 20), 0.4, items=items[1:2], seed=3).valid[0])


@pytest.mark.parametrize("place", [1, 6, 19])
def test_every_token_but_the_first_is_dropped_equally_often(place):
    kept = drop_tokens(tokens_of([20] * 4000, 20), 0.25, items=torch.arange(4000), seed=0).valid
    assert kept[:, place].float().mean() == pytest.approx(14 / 19, abs=0.03)


def test_the_first_valid_token_stays_wherever_the_padding_is():
    tokens = tokens_of([4], 4)
    tokens = replace(tokens, valid=torch.tensor([[False, False, True, True]]))
    assert drop_tokens(tokens, 0.9, items=torch.tensor([0]), seed=0).valid.tolist() == [[False, False, True, False]]
