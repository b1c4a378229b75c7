import gc
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.bank import BankLoader, epoch_batches, prefetched
from adaptmed.errors import InputError

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("adaptmed-read")]


@given(sizes, st.integers(1, 7), st.integers(0, 3), st.integers(0, 3), st.integers(1, 30), st.booleans())
def test_batches_are_a_partition_and_a_function_of_seed_and_epoch(counts, batch, seed, epoch, window, drop):
    shards = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(shards)) + 100
    arguments = {"batch_size": batch, "seed": seed, "window_rows": window, "drop_last": drop}
    batches = epoch_batches(rows, shards, epoch=epoch, **arguments)
    seen = np.concatenate(batches) if batches else np.array([], dtype=int)
    assert len(set(seen)) == len(seen)
    assert len(seen) == (len(rows) // batch * batch if drop else len(rows))
    assert set(seen) <= set(rows)
    assert all(len(part) == batch for part in batches[:-1])
    again = epoch_batches(rows, shards, epoch=epoch, **arguments)
    assert [part.tolist() for part in again] == [part.tolist() for part in batches]


@given(sizes, st.integers(0, 3), st.integers(1, 30))
def test_few_shards_are_in_use_at_a_time(counts, seed, window):
    shards = np.repeat(np.arange(len(counts)), counts)
    (order,) = epoch_batches(
        np.arange(len(shards)), shards, batch_size=len(shards), seed=seed, epoch=0, window_rows=window
    )
    first = {shard: place for place, shard in reversed(list(enumerate(shards[order])))}
    last = {shard: place for place, shard in enumerate(shards[order])}
    for shard, start in first.items():
        span = last[shard] - start + 1
        assert span <= max(window, counts[shard])


def test_one_window_mixes_all_shards_and_epochs_differ():
    shards = np.repeat(np.arange(4), 64)
    rows = np.arange(256)
    first, *_ = epoch_batches(rows, shards, batch_size=64, seed=0, epoch=0)
    other, *_ = epoch_batches(rows, shards, batch_size=64, seed=0, epoch=1)
    assert np.bincount(shards[first], minlength=4).min() > 5
    assert first.tolist() != other.tolist()


def test_a_stopped_run_goes_on_with_the_very_next_batch(known):
    rows = known.bank.subset("train")
    whole = BankLoader(known.bank, rows, batch_size=4, seed=3, window_rows=8)
    straight = [
        batch.rows
        for epoch in range(3)
        for batch in BankLoader(
            known.bank, rows, batch_size=4, seed=3, window_rows=8, position=lambda epoch=epoch: epoch * len(whole)
        )
    ]
    assert len(straight) == 3 * len(whole) == 12
    for stop in range(len(straight)):
        rest = list(BankLoader(known.bank, rows, batch_size=4, seed=3, window_rows=8, position=lambda stop=stop: stop))
        assert len(rest) == len(whole) - stop % len(whole)
        for mine, theirs in zip(rest, straight[stop:], strict=False):
            assert torch.equal(mine.rows, theirs)


def test_batches_hold_what_the_bank_holds(known):
    for batch in BankLoader(known.bank, known.bank.subset("train"), batch_size=4, dtype=torch.float32):
        expected = known.bank.batch(batch.rows.numpy(), torch.float32)
        assert torch.equal(batch.image.values, expected.image.values)
        assert torch.equal(batch.text.values, expected.text.values)
        assert batch.ids == expected.ids
        assert batch.image.values.dtype == torch.float32


def test_without_shuffling_rows_come_in_order_from_the_start(known):
    loader = BankLoader(known.bank, np.array([7, 1, 3]), batch_size=2, shuffle=False, position=lambda: 1)
    assert [batch.rows.tolist() for batch in loader] == [[7, 1], [3]]
    assert len(BankLoader(known.bank, np.array([7, 1, 3]), batch_size=2, drop_last=True)) == 1


def test_no_rows_are_an_error(known):
    with pytest.raises(InputError, match="at least 1 rows, but got 0"):
        BankLoader(known.bank, known.bank.subset("validate"), batch_size=2)
    with pytest.raises(InputError, match="at least 8 rows, but got 5"):
        BankLoader(known.bank, known.bank.subset("test"), batch_size=8, drop_last=True)


def test_a_dropped_iterator_ends_its_thread(known, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # only beside a GPU is there a thread
    iterator = iter(BankLoader(known.bank, known.bank.subset(None), batch_size=1))
    next(iterator)
    assert readers()
    del iterator
    gc.collect()
    assert not readers()


def test_errors_come_where_the_result_would_have_come():
    def invert(number):
        return 1 / number

    results = prefetched(invert, [2, 1, 0, 1], workers=2, ahead=3)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError, match="division"):
        next(results)
    assert not readers()


def test_reading_ahead_is_bounded():
    begun = []
    results = prefetched(begun.append, range(100), workers=4, ahead=3)
    next(results)
    time.sleep(0.05)
    assert len(begun) == 4
    results.close()
