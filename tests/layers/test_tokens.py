"""Dropping, grouping and pooling tokens; attention without any key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.layers.attention import Attention
from adaptmed.layers.padding import by_length
from adaptmed.layers.pooling import drop_tokens, masked_mean
from adaptmed.layers.positions import GridPositions
from adaptmed.types import Tokens


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5))
@settings(deadline=None)
def test_groups_hold_every_row_once_and_nothing_valid_is_cut(lengths, group):
    token = max(max(lengths), 1)
    valid = torch.arange(token)[None] < torch.tensor(lengths)[:, None]
    values = torch.arange(len(lengths) * token, dtype=torch.float32).reshape(len(lengths), token, 1)
    groups = by_length(Tokens(values, valid, values[:, 0]), group=group)
    assert sorted(torch.cat([rows for rows, _ in groups]).tolist()) == list(range(len(lengths)))
    for rows, part in groups:
        assert len(rows) <= group
        torch.testing.assert_close(masked_mean(part.values, part.valid), masked_mean(values[rows], valid[rows]))
        assert part.valid.sum() == valid[rows].sum()


@given(st.integers(1, 20), st.floats(0, 0.95), st.integers(0, 99))
@settings(deadline=None)
def test_dropping_keeps_the_first_token_the_order_and_the_share(token, share, seed):
    torch.manual_seed(seed)
    values = torch.arange(token, dtype=torch.float32).expand(3, token)[:, :, None]
    kept, valid = drop_tokens(values, torch.ones(3, token, dtype=torch.bool), share)
    assert kept.shape == (3, max(1, round(token * (1 - share))), 1)
    assert (kept[:, 0] == 0).all()
    assert (kept[:, 1:] > kept[:, :-1]).all()
    assert valid.all()


def test_every_item_drops_its_own_tokens():
    torch.manual_seed(0)
    values = torch.arange(40.0).expand(2, 40)[:, :, None]
    kept, _ = drop_tokens(values, torch.ones(2, 40, dtype=torch.bool), 0.5)
    assert not torch.equal(kept[0], kept[1])


def test_attention_over_nothing_gives_the_bias_alone():
    torch.manual_seed(0)
    attention = Attention(8, 2)
    x = torch.randn(2, 3, 8)
    out = attention(x, x, torch.tensor([[True, True, False], [False, False, False]]))
    torch.testing.assert_close(out[1], attention.out.bias.expand(3, 8))


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 7), (16, 16)])
def test_positions_cover_any_grid_and_are_exact_on_their_own(grid):
    torch.manual_seed(0)
    positions = GridPositions(6, (4, 4), prefix=2)
    found = positions(grid)
    assert found.shape == (2 + grid[0] * grid[1], 6)
    if grid == (4, 4):
        assert torch.equal(found[2:], positions.grid.flatten(0, 1))
