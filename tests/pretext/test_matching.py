"""Mismatched texts differ in wording, whatever the batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.pretext.matching import MatchingHead, mismatched_texts


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


def test_the_head_gives_one_logit_per_pair():
    assert MatchingHead(8)(torch.zeros(3, 8)).shape == (3,)
