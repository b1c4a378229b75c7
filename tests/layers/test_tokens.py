"""Draws per item; grouping, compacting and pooling tokens; attention without any key."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from adaptmed.layers.attention import Attention
from adaptmed.layers.draws import item_draws
from adaptmed.layers.padding import by_length, compact, embed_by_length, restore
from adaptmed.layers.pooling import masked_mean
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


def test_compacting_keeps_order_and_every_valid_token():
    torch.manual_seed(0)
    valid = torch.rand(6, 9) < 0.5
    valid[0] = False
    values = torch.arange(54.0).reshape(6, 9, 1)
    kept, kept_valid = compact(values, valid)
    assert kept.shape[1] == valid.sum(1).max()
    for item in range(6):
        assert torch.equal(kept[item][kept_valid[item]], values[item][valid[item]])


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
@settings(deadline=None)
def test_what_was_compacted_goes_back_to_its_places(places):
    valid = torch.tensor(places)
    values = torch.arange(1.0, valid.numel() * 2 + 1).reshape(*valid.shape, 2)
    assert torch.equal(restore(compact(values, valid)[0], valid), values * valid[:, :, None])


def test_embedding_by_length_keeps_the_rows_in_order_and_computes_little_padding():
    lengths = torch.tensor([5, 1, 4, 1, 2])
    valid = torch.arange(6)[None] < lengths[:, None]
    values = torch.arange(30.0).reshape(5, 6, 1)
    computed = []

    def embed(part):
        computed.append(part.values.shape[1])
        return masked_mean(part.values, part.valid)

    found = embed_by_length(embed, Tokens(values, valid, values[:, 0]), group=2)
    torch.testing.assert_close(found, masked_mean(values, valid))
    assert computed == [1, 4, 5]


def test_draws_are_the_published_splitmix():
    def mixed(state):  # in Python's unbounded integers
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        return state ^ (state >> 31)

    assert mixed(0) == 0xE220A8397B1DCDAF  # the first output of the authors' generator from seed 0
    found = item_draws(torch.tensor([3, 2**40]), 4, seed=2**63 + 17)
    for row, item in enumerate((3, 2**40)):
        for place in range(4):
            bits = mixed(mixed(mixed(2**63 + 17) ^ item) ^ place) % 2**24
            assert found[row, place].item() == bits / 2**24


def test_draws_are_uniform_and_of_each_item_its_own():
    draws = item_draws(torch.arange(400), 50, seed=11)
    assert kstest(draws.flatten().numpy(), "uniform").pvalue > 0.001
    assert kstest(item_draws(torch.tensor([7]), 5000, seed=1)[0].numpy(), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(draws[:-1].flatten(), draws[1:].flatten())[0, 1]) < 0.03
    assert not torch.equal(draws, item_draws(torch.arange(400), 50, seed=12))
    assert torch.equal(draws[::2], item_draws(torch.arange(0, 400, 2), 50, seed=11))


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
