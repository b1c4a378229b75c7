import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.adaptor.features import embed_rows
from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.fusion import CrossConfig, CrossFusion
from adaptmed.metrics.retrieval import first_positive_ranks
from adaptmed.tasks.retrieval.sets import retrieve
from adaptmed.types import Tokens


class MemoryBank(Bank):
    """Tokens in memory; texts of 1 to 7 words, padded to the longest that is asked for."""

    def __init__(self, rows=11):
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(rows, 5, 8, generator=generator)
        self.shown = Tokens(values, torch.ones(rows, 5, dtype=torch.bool), values[:, 0], (2, 2), 1)
        self.lengths = torch.arange(rows) % 7 + 1
        self.words = torch.randn(rows, 7, 6, generator=generator)
        self.widest = 0

    def image_tokens(self, rows, dtype=None):
        return self.shown.select(torch.as_tensor(rows)).to("cpu", dtype)

    def text_tokens(self, rows, dtype=None):
        rows = torch.as_tensor(rows)
        longest = int(self.lengths[rows].max())
        self.widest = max(self.widest, longest)
        valid = torch.arange(longest) < self.lengths[rows, None]
        values = self.words[rows, :longest] * valid[..., None]
        return Tokens(values.to(dtype), valid, values.mean(1).to(dtype))


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return CrossFusion(CrossConfig(image_width=8, text_width=6, width=16, heads=2, image_grid=(2, 2)))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_batches_and_padding_change_nothing(fusion, modality):
    bank, rows = MemoryBank(), np.array([3, 0, 10, 6, 5])
    whole = embed_rows(fusion, bank, rows, modality=modality)
    single = torch.cat([embed_rows(fusion, bank, rows[i : i + 1], modality=modality) for i in range(5)])
    torch.testing.assert_close(embed_rows(fusion, bank, rows, modality=modality, batch_size=2), whole)
    torch.testing.assert_close(single, whole)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))


def test_a_batch_is_padded_to_its_own_longest_text(fusion):
    bank = MemoryBank()
    embed_rows(fusion, bank, np.array([0, 1, 7, 8]), modality="text", batch_size=2)
    assert bank.widest == 2


def test_dropout_is_off_and_the_mode_comes_back(fusion):
    bank, rows = MemoryBank(), np.arange(5)
    fusion.train()
    first = embed_rows(fusion, bank, rows, modality="image")
    torch.testing.assert_close(embed_rows(fusion, bank, rows, modality="image"), first)
    assert fusion.training
    assert not fusion.eval().training
    embed_rows(fusion, bank, rows, modality="image")
    assert not fusion.training


def test_embeddings_may_enter_a_graph(fusion):
    embeddings = embed_rows(fusion, MemoryBank(), np.arange(3), modality="image")
    layer = torch.nn.Linear(16, 1)
    layer(embeddings).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], embeddings.sum(0))


def test_no_rows_are_refused(fusion):
    with pytest.raises(InputError, match="`rows`: expected at least one"):
        embed_rows(fusion, MemoryBank(), np.arange(0), modality="image")


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=20).filter(lambda groups: max(groups) >= 0))
def test_the_gallery_holds_every_text_once(groups):
    group = torch.tensor(groups)
    texts = torch.nn.functional.one_hot(group.clamp(min=0), 6).float()
    images = torch.arange(len(groups))[:, None].float().expand(-1, 6)
    sets = retrieve(images, texts, group)
    assert sets.text_group.tolist() == sorted(set(groups) - {-1})
    assert sets.texts.argmax(1).tolist() == sets.text_group.tolist()
    assert sets.images[:, 0].tolist() == [row for row, number in enumerate(groups) if number >= 0]
    assert sets.image_group.tolist() == [number for number in groups if number >= 0]


def test_perfect_embeddings_are_found_first_both_ways():
    group = torch.tensor([2, 0, 2, -1, 1])
    embeddings = torch.nn.functional.one_hot(group.clamp(min=0), 3).float()
    sets = retrieve(embeddings, embeddings, group)
    ranks = first_positive_ranks(sets.images, sets.texts, sets.image_group, sets.text_group)
    assert ranks.tolist() == [1, 1, 1, 1]
    assert first_positive_ranks(sets.texts, sets.images, sets.text_group, sets.image_group).tolist() == [1, 1, 1]


def test_rows_without_texts_alone_are_refused():
    with pytest.raises(InputError, match="`text_group`: expected a row with a text"):
        retrieve(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([-1, -1]))


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="expected equal lengths, but got 2, 2 and 1"):
        retrieve(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0]))
