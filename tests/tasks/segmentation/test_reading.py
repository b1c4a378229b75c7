"""What a step reads: windows and masks of the same places, drawn from nothing but seed, step and row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.bank import Bank
from adaptmed.data.images import prepare, read_image
from adaptmed.errors import BankError
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.reading import Examples, InOrder, Steps, Wanted, WindowReader, places_at
from tests.masked_images import write_pictures, write_volumes

ALL = Wanted(tokens=True, taps=True, pixels=True)


@pytest.fixture(scope="module")
def masks(pictures, tmp_path_factory):
    return find_masks(pictures, tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def deep_masks(volumes, tmp_path_factory):
    return find_masks(volumes, tmp_path_factory.mktemp("deep-masks"))


def same(one, two):
    (windows, mask), (others, other) = one, two
    taps = all(torch.equal(a, b) for a, b in zip(windows.taps, others.taps, strict=True))
    tokens = windows.tokens is None or torch.equal(windows.tokens.values, others.tokens.values)
    return tokens and taps and torch.equal(windows.pixels, others.pixels) and torch.equal(mask, other)


def test_pictures_come_from_the_bank_or_from_their_files(embedded, pictures, tmp_path):
    stored = embedded(write_pictures(tmp_path / "data"), pixels=True)
    rows = np.array([3, 0, 7])
    read, kept = WindowReader(pictures, ALL)(rows), WindowReader(stored, ALL)(rows)
    assert torch.equal(read.tokens.values, kept.tokens.values)
    assert torch.equal(read.taps[0], kept.taps[0])
    facts = pictures.info.images.preprocessing
    files = [pictures.folder.parent / "pictures" / pictures.rows["image"].iloc[row] for row in rows]
    assert torch.equal(read.pixels, torch.stack([prepare(read_image(path), facts) for path in files]))
    assert (read.pixels - kept.pixels).abs().max() <= 1 / 255 / min(facts.std)
    assert torch.equal(WindowReader(stored, ALL).picture(7), kept.pixels[2])


def test_what_is_not_wanted_is_not_read(pictures):
    nothing = WindowReader(pictures, Wanted(tokens=False, taps=False, pixels=False))(np.array([0]))
    assert (nothing.tokens, nothing.taps, nothing.pixels, nothing.size) == (None, (), None, (32, 32))


def test_windows_of_uneven_depth_repeat_the_last_slice_and_label_it_not(volumes, deep_masks):
    depths = volumes.rows["slices"].to_numpy()
    rows = deep_masks.rows("train")
    examples = Examples(WindowReader(volumes, ALL), deep_masks, rows, 4, seed=3)
    assert depths[rows].min() < 4 < depths[rows].max()
    windows, masks = examples.batch(np.arange(len(rows)), draw=5)
    assert windows.depth == 4
    assert masks.shape == (len(rows), 4, 32, 32)
    for place, row in enumerate(rows.tolist()):
        items, own = volumes.items_of(row), slice(4 * place, 4 * place + 4)
        tokens = windows.tokens.values[own]
        every = volumes.item_tokens(items, dtype=torch.float32).values
        length = min(4, len(items))
        (start,) = [
            at for at in range(len(items) - length + 1) if torch.equal(every[at : at + length], tokens[:length])
        ]
        offsets = np.minimum(start + np.arange(4), len(items) - 1)
        assert torch.equal(tokens, every[offsets])
        assert torch.equal(windows.taps[0][own], volumes.item_taps(items, dtype=torch.float32)[0][offsets])
        assert torch.equal(masks[place, :length], deep_masks.planes(row, offsets[:length]))
        assert masks[place, length:].eq(-1).all()


def test_a_window_is_drawn_from_seed_step_and_row(volumes, deep_masks):
    rows = deep_masks.rows("train")
    deep = int(np.argmax(volumes.rows["slices"].to_numpy()[rows]))
    reader = WindowReader(volumes, ALL)

    def window(places, *, seed=1, draw=0):
        windows, masks = Examples(reader, deep_masks, rows, 2, seed).batch(np.array(places), draw)
        at = places.index(deep)
        return windows.pixels[2 * at : 2 * at + 2], masks[at]

    others = [place for place in range(len(rows)) if place != deep]
    for draw in range(6):
        alone, among = window([deep], draw=draw), window([others[0], deep, others[1]], draw=draw)
        assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))
    pixels = [window([deep], draw=draw)[0] for draw in range(12)]
    assert len({tuple(values.flatten().tolist()) for values in pixels}) > 2
    assert any(not torch.equal(window([deep], seed=seed)[0], pixels[0]) for seed in range(2, 8))


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 5), st.integers(1, 4))
def test_every_pass_holds_every_place_once(count, size, seed, passes):
    steps = -(-count * passes // size)
    drawn = [places_at(count, size, seed=seed, step=step) for step in range(steps)]
    assert {len(batch) for batch in drawn} == {size}
    order = np.concatenate(drawn)[: count * passes].reshape(passes, count)
    assert (np.sort(order) == np.arange(count)).all()
    for step, batch in enumerate(drawn):
        assert np.array_equal(batch, places_at(count, size, seed=seed, step=step))


def test_passes_and_seeds_differ():
    first, second = places_at(50, 50, seed=0, step=0), places_at(50, 50, seed=0, step=1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, places_at(50, 50, seed=1, step=0))


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_a_round_goes_on_at_any_step_with_the_same_batches(request, kind):
    bank = request.getfixturevalue(kind)
    masks = request.getfixturevalue({"pictures": "masks", "volumes": "deep_masks"}[kind])
    examples = Examples(WindowReader(bank, ALL), masks, masks.rows("train"), 2, seed=0)

    def batches(now):
        return list(Steps(examples, size=4, steps=3, step=lambda: now))

    every = batches(0) + batches(3)
    assert len(every) == 2 * len(Steps(examples, size=4, steps=3, step=lambda: 0)) == 6
    for now in range(6):
        left = every[now : (now // 3 + 1) * 3]
        again = batches(now)
        assert len(again) == len(left)
        assert all(same(one, two) for one, two in zip(again, left, strict=True))
    assert not same(every[0], every[1])


def test_fewer_rows_than_a_batch_make_a_smaller_batch(pictures, masks):
    examples = Examples(WindowReader(pictures, ALL), masks, masks.rows("train")[:3], 1, seed=0)
    assert [len(mask) for _, mask in Steps(examples, size=8, steps=2, step=lambda: 0)] == [3, 3]


def test_judging_reads_every_row_once_in_order(pictures, masks):
    rows = masks.rows("train")[:5]
    batches = list(InOrder(Examples(WindowReader(pictures, ALL), masks, rows, 1, seed=0), size=2))
    assert [len(mask) for _, mask in batches] == [2, 2, 1]
    alone = torch.cat([WindowReader(pictures, ALL)(rows[[place]]).pixels for place in range(5)])
    assert torch.equal(torch.cat([windows.pixels for windows, _ in batches]), alone)


def test_from_a_bank_two_passes_read_the_same(pictures, masks):
    examples = Examples(WindowReader(pictures, ALL), masks, masks.rows("train"), 1, seed=0)
    assert same(examples.batch(np.arange(4), draw=0), examples.batch(np.arange(4), draw=7))


def test_taps_that_are_not_there_are_refused(embedded, tmp_path):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10), taps=0)
    with pytest.raises(BankError, match="taps"):
        WindowReader(bank, ALL)(np.array([0]))


def test_volumes_without_pixels_are_refused(embedded, tmp_path):
    bank = embedded(write_volumes(tmp_path / "data", depths=(2, 1)), pixels=False)
    with pytest.raises(BankError, match="expected the pixels of its volumes, which the decoder reads, but got none"):
        WindowReader(bank, ALL)


def test_a_bank_of_texts_alone_is_refused(pictures):
    bare = Bank.open(pictures.folder)
    bare.info = replace(bare.info, images=None)
    with pytest.raises(BankError, match="expected a bank that holds images, but got none of them"):
        WindowReader(bare, ALL)
