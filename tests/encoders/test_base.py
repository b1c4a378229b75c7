"""The fingerprint, freezing, tap indices and size checks on small cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adaptmed.encoders.base import FrozenEncoder, check_size, fingerprint, interpolate_positions, tap_indices
from adaptmed.errors import InputError


def frozen(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).requires_grad_(requires_grad=False)


def test_the_order_of_layers_does_not_change_the_fingerprint() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    assert fingerprint(frozen(first, second)) == fingerprint(frozen(second, first))


def test_equal_bytes_in_another_shape_are_other_weights() -> None:
    wide, tall = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    tall.weight.data = wide.weight.data.reshape(2, 3)
    assert fingerprint(frozen(wide)) != fingerprint(frozen(tall))


def test_trainable_and_tied_and_integer_tensors() -> None:
    layer = nn.Linear(3, 3)
    plain = fingerprint(frozen(layer))
    assert fingerprint(nn.ModuleList([frozen(layer), layer])) == plain, "tied weights count once"
    assert fingerprint(nn.ModuleList([frozen(layer), nn.Linear(9, 9)])) == plain, "trainable weights do not count"
    norm = nn.BatchNorm1d(3)
    before = fingerprint(frozen(norm))
    norm.num_batches_tracked += 1
    assert fingerprint(norm) == before
    norm.running_mean += 1
    assert fingerprint(norm) != before


def test_batch_norm_statistics_never_move() -> None:
    encoder = FrozenEncoder(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), "tiny")
    before = encoder.fingerprint()
    encoder.train().module(torch.randn(8, 3))
    assert encoder.fingerprint() == before
    unfrozen = nn.BatchNorm1d(3).requires_grad_(requires_grad=False)
    moved = fingerprint(unfrozen)
    unfrozen.train()(torch.randn(8, 3))
    assert fingerprint(unfrozen) != moved, "the fingerprint would have seen it"


@given(st.integers(1, 60), st.data())
def test_taps_are_evenly_spaced_and_end_at_the_last_block(blocks: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, blocks))
    indices = tap_indices(blocks, count)
    gaps = {later - earlier for earlier, later in zip([-1, *indices], indices, strict=False)}
    assert len(indices) == count
    assert indices[-1] == blocks - 1
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 32))
def test_a_size_fits_or_the_nearest_are_named(height: int, width: int, patch: int) -> None:
    if height % patch == 0 and width % patch == 0:
        assert check_size((height, width), (patch, patch), "pixels") == (height // patch, width // patch)
        return
    low = [max(math.floor(side / patch), 1) * patch for side in (height, width)]
    high = [math.ceil(side / patch) * patch for side in (height, width)]
    with pytest.raises(InputError, match=rf"are {low[0]}x{low[1]} and {high[0]}x{high[1]}\.$"):
        check_size((height, width), (patch, patch), "pixels")


def test_interpolated_positions_keep_the_class_position_and_flat_tables() -> None:
    table = torch.cat([torch.tensor([[7.0, 8.0]]), torch.tensor([[1.0, 2.0]]).repeat(12, 1)])
    positions = interpolate_positions(table, (3, 4), (5, 2))
    assert torch.equal(positions[0], table[0])
    torch.testing.assert_close(positions[1:], table[1:2].repeat(10, 1))
    ramp = torch.cat([torch.zeros(1, 1), torch.arange(4.0).repeat(3)[:, None]])
    wider = interpolate_positions(ramp, (3, 4), (3, 8))[1:].reshape(3, 8)
    assert (wider.diff(dim=1) > 0).all(), "columns stay columns"
    torch.testing.assert_close(wider, wider[:1].expand(3, 8))
