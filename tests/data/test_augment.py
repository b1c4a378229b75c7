import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.data.augment import augment, augment_with_mask

seeds = st.integers(0, 2**40)


def drawn(*sides):
    """A mask with a part of label 1 low in columns and a part of label 5 high in rows, and an image that shows both."""
    mask = torch.zeros(sides, dtype=torch.int64)
    height, width = sides[-2:]
    mask[..., height // 4 : 3 * height // 4, width // 8 : width // 2] = 1
    mask[..., 5 * height // 8 : 7 * height // 8, 5 * width // 8 : 7 * width // 8] = 5
    return torch.stack([(mask == 1).float(), (mask == 5).float(), torch.zeros(sides)]), mask


def test_what_comes_out_is_a_plain_tensor():
    pixels, mask = drawn(64, 48)
    found = (augment(pixels, seed=1), *augment_with_mask(pixels, mask, seed=1))
    assert {type(tensor) for tensor in found} == {torch.Tensor}


@given(seed=seeds)
@settings(max_examples=15)
def test_picture_and_mask_move_alike(seed):
    pixels, mask = drawn(64, 48)
    changed, moved = augment_with_mask(pixels, mask, seed=seed)
    assert torch.equal(changed, augment(pixels, seed=seed))
    assert moved.shape == mask.shape
    assert moved.dtype == torch.int64
    assert set(moved.unique().tolist()) <= {0, 1, 5}
    for channel, label in ((0, 1), (1, 5)):
        shown = changed[channel] > changed[channel].max() / 2
        assert (shown != (moved == label)).float().mean() < 0.02


@given(seed=seeds)
@settings(max_examples=8)
def test_slices_of_a_volume_turn_in_their_plane_and_move_alike(seed):
    pixels, mask = drawn(9, 48, 48)
    changed, moved = augment_with_mask(pixels, mask, seed=seed)
    assert changed.shape == pixels.shape
    assert set(moved.unique().tolist()) <= {0, 1, 5}
    for number in range(9):  # all slices are alike, and stay alike
        assert torch.equal(moved[number], moved[0])
    shown = changed[0] > changed[0].max() / 2
    assert (shown != (moved == 1)).float().mean() < 0.02


def test_a_volume_is_scaled_in_its_rows_and_columns_alone():
    mask = torch.zeros(40, 32, 32, dtype=torch.int64)
    mask[10:30, 8:24, 8:24] = 1
    areas = []
    for seed in range(8):
        _, moved = augment_with_mask(torch.rand(1, 40, 32, 32), mask, seed=seed)
        areas.append(moved.sum((1, 2)).max().item())
        assert 19 <= (moved.sum((1, 2)) > 0).sum() <= 21
    assert max(areas) > 1.1 * min(areas)


def test_changes_are_those_of_the_seed_and_never_mirror():
    pixels, mask = drawn(64, 64)
    first = [augment_with_mask(pixels, mask, seed=seed) for seed in range(10)]
    for seed, (changed, moved) in enumerate(first):
        again = augment_with_mask(pixels, mask, seed=seed)
        assert torch.equal(changed, again[0])
        assert torch.equal(moved, again[1])
        columns = [(moved == label).nonzero()[:, 1].float().mean() for label in (1, 5)]
        rows = [(moved == label).nonzero()[:, 0].float().mean() for label in (1, 5)]
        assert columns[0] < columns[1]
        assert rows[0] < rows[1]
    assert len({tuple(moved.flatten().tolist()) for _, moved in first}) == 10


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_padding_and_high_labels_survive(kind):
    mask = torch.full((32, 32), 60_000 if kind != torch.uint8 else 200, dtype=kind)
    if kind != torch.uint8:
        mask[:, :6] = -1
    _, moved = augment_with_mask(torch.rand(3, 32, 32), mask, seed=3)
    assert moved.dtype == kind
    assert set(moved.unique().tolist()) == set(mask.unique().tolist())
