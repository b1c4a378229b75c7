"""Changes behind the encoder: maps of any resolution, pixels and masks move alike, without flips and by seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from adaptmed.tasks.segmentation.windows.changes import SCALE, SHIFT, TURN_DEGREES, Changes, moved

STILL = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def blob(size, centre, width):
    """A smooth bump, so that its centre of mass is where it stands at every resolution."""
    rows, columns = (torch.linspace(-1 + 1 / side, 1 - 1 / side, side) for side in size)
    distance = (rows[:, None] - centre[0]) ** 2 + (columns[None] - centre[1]) ** 2
    return torch.exp(-distance / width**2)[None, None]


def centre_of(values):
    """Centre of mass in shares of the side, from -1 to 1."""
    total = values.sum()
    rows, columns = (torch.linspace(-1 + 1 / side, 1 - 1 / side, side) for side in values.shape[-2:])
    return torch.stack([(values.sum(-1).flatten() * rows).sum(), (values.sum(-2).flatten() * columns).sum()]) / total


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), row=st.floats(-0.4, 0.4), column=st.floats(-0.4, 0.4))
def test_maps_pixels_and_masks_land_in_the_same_place(seed, row, column):
    changes = Changes.draw([(seed,)], (64, 64))
    fine, coarse = (blob((side, side), (row, column), 0.25) for side in (64, 16))
    places = [centre_of(changes.of_map(values)) for values in (fine, coarse)]
    mask = (fine[0] > 0.5).long()
    places.append(centre_of(changes.of_mask(mask)[:, None].float()))
    assert torch.allclose(places[0], places[1], atol=0.03)
    assert torch.allclose(places[0], places[2], atol=0.05)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_nothing_is_mirrored_and_everything_stays_within_its_bounds(seed):
    moves = Changes.draw([(seed,)], (64, 64)).moves[0].numpy()
    turn, shift = moves[:, :2], moves[:, 2]
    assert np.linalg.det(turn) > 0
    stretch = np.linalg.norm(turn, axis=0)
    assert (np.abs(stretch - 1) <= SCALE + 1e-5).all()
    angle = np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))
    assert abs(angle) <= TURN_DEGREES + 1e-3
    assert (np.abs(shift) <= 2 * SHIFT + 1e-6).all()


def test_a_turn_keeps_right_angles_in_images_that_are_not_square():
    size = (30, 60)
    turn = Changes.draw([(5,)], size).moves[0, :, :2].double().numpy()
    pixels = np.diag([60, 30]) @ turn @ np.diag([1 / 60, 1 / 30])  # along (x, y), in pixels
    unit = pixels / np.linalg.norm(pixels, axis=0)
    assert abs(unit[:, 0] @ unit[:, 1]) < 1e-6


def test_every_window_has_its_own_change_and_a_seed_gives_it_again():
    together, alone = Changes.draw([(0, 3, 1), (0, 3, 2)], (8, 8)), Changes.draw([(0, 3, 2)], (8, 8))
    values = torch.rand(2, 3, 8, 8)
    assert torch.equal(together.of_pixels(values)[1], alone.of_pixels(values[1:])[0])
    assert not torch.equal(together.moves[0], together.moves[1])


def test_the_slices_of_a_window_move_as_pictures_do():
    changes, volume = Changes.draw([(7,), (8,)], (12, 12)), torch.rand(2, 4, 5, 12, 12)
    whole = changes.of_map(volume)
    for number in range(5):
        assert torch.allclose(whole[:, :, number], changes.of_map(volume[:, :, number]), atol=1e-6)
    masks = torch.randint(-1, 3, (2, 5, 12, 12))
    assert torch.equal(changes.of_mask(masks)[:, 2], changes.of_mask(masks[:, 2]))


def test_masks_get_no_new_value():
    masks = torch.randint(0, 2, (4, 16, 16)) * 7 - 1
    moved_masks = Changes.draw([(seed,) for seed in range(4)], (16, 16)).of_mask(masks)
    assert set(moved_masks.unique().tolist()) <= {-1, 6}
    assert moved_masks.dtype == masks.dtype


def test_moving_is_what_shifting_by_whole_pixels_is():
    values = torch.rand(1, 2, 6, 8)
    right = STILL.clone()
    right[0, 0, 2] = -2 / 8  # what stands at x comes from one pixel to its left
    expected = functional.pad(values, (1, 0, 0, 0), mode="replicate")[..., :-1]
    assert torch.allclose(moved(values, right), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 9), (3, 9, 9)])
def test_pixels_change_in_contrast_and_brightness_too(size):
    pixels = torch.rand(1, 3, *size)
    changes = Changes(STILL, torch.tensor([1.5]), torch.tensor([0.25]))
    assert torch.allclose(changes.of_pixels(pixels), pixels * 1.5 + 0.25, atol=1e-5)
    assert torch.allclose(changes.of_map(pixels), pixels, atol=1e-5)
