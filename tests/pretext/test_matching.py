"""Mismatched texts differ in wording and in what they say, whatever the batch; hard ones are drawn by similarity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.pretext.matching import MatchingHead, matching_targets, mismatched_texts


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=12), st.integers(0, 1000))
def test_a_mismatched_text_is_another_text(groups, seed):
    group = torch.tensor(groups)
    choice, found = mismatched_texts(group, torch.Generator().manual_seed(seed))
    for item in range(len(group)):
        others = (group >= 0) & (group != group[item])
        assert found[item] == (bool(others.any()) and group[item] >= 0)
        if found[item]:
            assert others[choice[item]]
        else:
            assert choice[item] == item


def test_the_choice_is_the_generators():
    group = torch.arange(50)
    first = mismatched_texts(group, torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, mismatched_texts(group, torch.Generator().manual_seed(1))[0])
    assert not torch.equal(first, mismatched_texts(group, torch.Generator().manual_seed(2))[0])


labelled = st.lists(
    st.tuples(st.integers(-1, 3), st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=2, max_size=2)),
    min_size=1,
    max_size=8,
)


@given(labelled, st.integers(0, 1000), st.booleans())
@settings(deadline=None)
def test_a_mismatched_text_says_something_else_where_labels_are_known(rows, seed, hard):
    group = torch.tensor([number for number, _ in rows])
    labels = torch.tensor([values for _, values in rows])
    similarity = 1000 * torch.randn(len(rows), len(rows)) if hard else None
    generator = torch.Generator().manual_seed(seed)
    choice, found = mismatched_texts(group, generator, similarity=similarity, labels=labels)
    for item, (number, values) in enumerate(rows):
        others = []
        for other, (their_number, their_values) in enumerate(rows):
            known = [(a, b) for a, b in zip(values, their_values, strict=True) if a == a and b == b]
            same = bool(known) and all(a == b for a, b in known)
            if number >= 0 <= their_number != number and not same:
                others.append(other)
        assert found[item] == bool(others)
        assert choice[item] in (others or [item])


def test_hard_negatives_are_drawn_in_proportion_to_the_similarity():
    group = torch.arange(4)
    logits = torch.tensor([9.0, 0.0, math.log(2), math.log(5)]).expand(4, 4).clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    draws = [mismatched_texts(group, generator, similarity=logits)[0][0].item() for _ in range(2000)]
    for other, share in ((0, 0), (1, 1 / 8), (2, 2 / 8), (3, 5 / 8)):  # never its own text, however similar
        assert draws.count(other) / 2000 == pytest.approx(share, abs=0.03)


def test_extreme_similarities_still_find_a_text():
    similarity = torch.tensor([[0.0, -1e30, -1e30], [1e30, 0.0, -1e30], [0.0, 0.0, 0.0]])
    choice, found = mismatched_texts(torch.arange(3), torch.Generator().manual_seed(0), similarity=similarity)
    assert found.all()
    assert choice[0] in (1, 2)
    assert choice[1] == 0


def test_pairs_without_a_mismatch_are_dropped_and_can_be_counted():
    group = torch.tensor([3, 3, -1, 3])
    found = mismatched_texts(group, torch.Generator().manual_seed(0))[1]
    targets = matching_targets(torch.tensor([True, False, False, False]), found)
    assert targets[0] == 1
    assert targets.isnan().sum() == 3


def test_the_head_gives_one_logit_per_pair():
    assert MatchingHead(8)(torch.zeros(3, 8)).shape == (3,)
