"""Re-ranking: the first k candidates change places by the matching head's logits, and nothing else does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.fusion import CoConfig, CoFusion, CrossConfig, CrossFusion
from adaptmed.metrics.retrieval import first_places, first_positive_ranks
from adaptmed.pretext.matching import MatchingHead
from adaptmed.tasks.retrieval import reranking
from adaptmed.tasks.retrieval.reranking import pair_logits, pair_logits_both_ways, rerank, reranked_ranks
from adaptmed.types import Tokens

ROWS, WORDS = 6, 7


class MemoryBank(Bank):
    """Tokens in memory; texts of 1 to 7 words, padded to the longest that is asked for. Counts what is read."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.values = torch.randn(ROWS, 5, 8, generator=generator)
        self.words = torch.randn(ROWS, WORDS, 6, generator=generator)
        self.largest = 0

    def image_tokens(self, rows, dtype=None):
        self.largest = max(self.largest, len(rows))
        values = self.values[rows].to(dtype)
        return Tokens(values, torch.ones(len(rows), 5, dtype=torch.bool), values[:, 0], (2, 2), 1)

    def text_tokens(self, rows, dtype=None):
        self.largest = max(self.largest, len(rows))
        lengths = torch.as_tensor(rows) % WORDS + 1
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        values = (self.words[rows, : valid.shape[1]] * valid[..., None]).to(dtype)
        return Tokens(values, valid, values.mean(1))


class Telling(MemoryBank):
    """Image and text of a row say which text the row has, one-hot."""

    def __init__(self, groups):
        self.said = torch.eye(ROWS)[torch.as_tensor(groups)]

    def image_tokens(self, rows, dtype=None):
        said = self.said[rows].to(dtype)
        return Tokens(said[:, None], torch.ones(len(rows), 1, dtype=torch.bool), said, (1, 1))

    def text_tokens(self, rows, dtype=None):
        said = self.said[rows].to(dtype)
        return Tokens(said[:, None], torch.ones(len(rows), 1, dtype=torch.bool), said)


def side_by_side():
    """A fusion that only puts the pooled vectors of both sides beside each other."""
    fusion, _ = fusion_of("cross")
    fusion.fuse = lambda image, text: (image, text, torch.cat([image.pooled, text.pooled], dim=1))
    return fusion


def knowing_head():
    """Multiplies both sides word by word: 1 where they say the same, 0 elsewhere."""
    head = MatchingHead(2 * ROWS)
    with torch.no_grad():
        for half in (head.image, head.text):
            half.weight.copy_(torch.eye(ROWS))
            half.bias.zero_()
        head.out.weight.fill_(1.0)
        head.out.bias.zero_()
    return head


def fusion_of(kind):
    torch.manual_seed(0)
    widths = {"image_width": 8, "text_width": 6, "width": 16, "heads": 2, "dropout": 0.5}
    if kind == "co":
        return CoFusion(CoConfig(**widths, layers=2, image_prefix=1)), MatchingHead(32)
    return CrossFusion(CrossConfig(**widths, image_grid=(2, 2))), MatchingHead(32)


@pytest.mark.parametrize("kind", ["cross", "co"])
def test_logits_are_those_of_every_pair_alone(kind):
    fusion, head = fusion_of(kind)
    fusion.eval()
    bank = MemoryBank()
    images, texts = (part.ravel() for part in np.divmod(np.arange(ROWS * ROWS), ROWS))
    with torch.no_grad():
        alone = [
            head(fusion.fuse(bank.image_tokens([i], torch.float32), bank.text_tokens([t], torch.float32))[2])
            for i, t in zip(images, texts, strict=True)
        ]
    fusion.train()
    for batch_size in (5, 200):
        logits = pair_logits(fusion, head, bank, images, texts, batch_size=batch_size)
        torch.testing.assert_close(torch.from_numpy(logits), torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert fusion.training
    assert head.training


def test_a_batch_reads_each_side_once_and_no_more_than_its_pairs():
    fusion, head = fusion_of("cross")
    bank = MemoryBank()
    pair_logits(fusion, head, bank, np.repeat(np.arange(ROWS), 4), np.tile(np.arange(4), ROWS), batch_size=6)
    assert bank.largest == 4  # two images at most, and all four texts


def test_pairs_of_both_directions_are_fused_once(monkeypatch):
    asked = []

    def spy(*given, **_):
        asked.extend(zip(given[3].tolist(), given[4].tolist(), strict=True))
        return (100 * given[3] + given[4]).astype(np.float32)

    monkeypatch.setattr(reranking, "pair_logits", spy)
    image_rows, text_rows = np.array([4, 5, 6]), np.array([40, 50])
    texts, images = np.array([[1], [0], [1]]), np.array([[2, 1], [0, 2]])
    of_images, of_texts = pair_logits_both_ways(
        *fusion_of("cross"), MemoryBank(), (image_rows, text_rows), (texts, images)
    )
    assert of_images.tolist() == [[450], [540], [650]]
    assert of_texts.tolist() == [[640, 540], [450, 650]]
    assert asked == [(4, 50), (5, 40), (6, 40), (6, 50)]


@given(st.data())
def test_places_are_those_of_a_plain_sort(data):
    """Only the first k stand in another order: by logit, equal ones as before."""
    m, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 11))
    random = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    queries, gallery = random.normal(size=(5, 4)), random.normal(size=(m, 4))
    asked, there = random.integers(0, 3, 5), random.integers(0, 3, m)
    every_logit = random.integers(0, 4, (5, m)).astype(float)
    ranks = first_positive_ranks(queries, gallery, asked, there)
    first = first_places(queries, gallery, asked, there, k=k)
    right, logits = there[first] == asked[:, None], np.take_along_axis(every_logit, first, 1)
    found = reranked_ranks(ranks, right, logits)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for number, query in enumerate(queries):
        before = sorted(range(m), key=lambda item: -(unit[item] @ query))
        after = sorted(before[:k], key=lambda item: -every_logit[number, item]) + before[k:]
        assert rerank(first, logits)[number].tolist() == after[:k]
        places = [place for place, item in enumerate(after, 1) if there[item] == asked[number]]
        assert found[number] == (places[0] if places else -1)
    if k == 1:
        assert (found == ranks).all()


def test_all_candidates_are_sorted_by_the_head_alone():
    random = np.random.default_rng(0)
    embeddings, logits, group = random.normal(size=(6, 4)), random.normal(size=(6, 6)), np.arange(6)
    first = first_places(embeddings, random.normal(size=(6, 4)), group, group, k=99)
    found = rerank(first, np.take_along_axis(logits, first, 1))
    assert (found == np.argsort(-logits, axis=1)).all()


def test_a_head_that_says_nothing_changes_nothing_even_among_equal_embeddings():
    constant, group = np.ones((6, 3)), np.arange(6)
    ranks = first_positive_ranks(constant, constant, group, group)
    first = first_places(constant, constant, group, group, k=4)
    assert (reranked_ranks(ranks, group[first] == group[:, None], np.zeros((6, 4))) == 6).all()
    first = first_places(constant, constant, group, group, k=6)
    assert (reranked_ranks(ranks, group[first] == group[:, None], np.zeros((6, 6))) == 6).all()


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_a_head_that_knows_the_truth_puts_it_first_wherever_it_is_among_the_candidates(top_k):
    groups = np.array([0, 1, 2, 3, 4, 5, 0, 0, 3])  # identical texts are one candidate
    texts, text_rows = np.unique(groups, return_index=True)
    random = np.random.default_rng(3)
    of_images, of_texts = random.normal(size=(9, 4)), random.normal(size=(6, 4))
    ways = ((of_images, of_texts, groups, texts), (of_texts, of_images, texts, groups))
    first = tuple(first_places(*way, k=top_k) for way in ways)
    logits = pair_logits_both_ways(side_by_side(), knowing_head(), Telling(groups), (np.arange(9), text_rows), first)
    for way, places, answers in zip(ways, first, logits, strict=True):
        ranks = first_positive_ranks(*way)
        found = reranked_ranks(ranks, way[3][places] == way[2][:, None], answers)
        assert (found == np.where(ranks <= top_k, 1, ranks)).all()
        assert (ranks > 1).any()


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="`image_rows, text_rows`: expected equal lengths, but got 2 and 3"):
        pair_logits(*fusion_of("cross"), MemoryBank(), np.arange(2), np.arange(3))


def test_logits_that_are_no_numbers_are_refused():
    fusion, head = fusion_of("cross")
    nn.init.constant_(head.out.bias, float("nan"))
    with pytest.raises(InputError, match="`matching logits`: expected finite numbers, but got 2 that are not"):
        pair_logits(fusion, head, MemoryBank(), np.arange(2), np.arange(2))
