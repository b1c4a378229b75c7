"""Word heads: what is tied, what is trained, what is saved."""

import math

import pytest
import torch
from torch import nn

from adaptmed.objectives.masked import masked_word_loss
from adaptmed.pretext.word import TiedWordHead, WordHead


def tied(width=8, words=50):
    return TiedWordHead(width, nn.Embedding(words, 6).weight)


HEADS = {"tied": tied, "own": lambda: WordHead(8, 50)}


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    return HEADS[request.param]()


def test_every_place_is_read_by_itself(head):
    tokens = torch.randn(3, 4, 8)
    logits = head(tokens)
    assert logits.shape == (3, 4, 50)
    torch.testing.assert_close(logits[1, 2], head(tokens[1, 2]))
    assert head(tokens[:0]).shape == (0, 4, 50)


def test_every_parameter_learns(head):
    masked_word_loss(head(torch.randn(9, 8)), torch.randint(50, (9,))).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_the_state_dict_holds_what_is_trained_and_nothing_else(head):
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}
    head.load_state_dict(head.state_dict(), strict=True)


def test_the_tied_embeddings_are_the_encoders_own_and_frozen():
    embedding = nn.Embedding(50, 6)
    head = TiedWordHead(8, embedding.weight)
    assert head.embeddings.data_ptr() == embedding.weight.data_ptr()
    head(torch.randn(2, 8)).sum().backward()
    assert embedding.weight.grad is None
    assert sum(p.numel() for p in head.parameters()) == 8 * 6 + 6 + 2 * 6 + 50


def test_the_tied_head_by_hand():
    head = TiedWordHead(2, torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    with torch.no_grad():
        head.project[0].weight.copy_(torch.eye(2))
        head.project[0].bias.zero_()
        head.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    logits = head(torch.tensor([3.0, -30.0]))  # after GELU about (3, 0), after the norm (1, -1)
    torch.testing.assert_close(logits, torch.tensor([1.0, -2.0, 5.0]), atol=1e-4, rtol=0)


def test_the_tied_head_starts_at_the_frequencies_of_words():
    """Where tokens say nothing, the loss is the entropy of the words: nothing is left to learn from counts."""
    head = TiedWordHead(2, torch.zeros(4, 3))
    head.start_at_frequencies(torch.tensor([60, 30, 10, 0]))
    guess = head(torch.randn(5, 2)).softmax(1)
    torch.testing.assert_close(guess, torch.tensor([0.6, 0.3, 0.1, 0.0]).expand(5, 4), atol=2e-3, rtol=0)
    assert guess[:, 3].gt(0).all()  # a word that training texts lack is not excluded


def test_the_paper_head_is_berts():
    """Dense, norm and decoder of RoBERTa-base's vocabulary: the size M3AE trains."""
    with torch.device("meta"):
        head = WordHead(768, 50_265)
    assert sum(p.numel() for p in head.parameters()) == 768 * 769 + 2 * 768 + 50_265 * 769


def test_an_untrained_head_of_its_own_is_near_chance():
    torch.manual_seed(0)
    loss = masked_word_loss(WordHead(64, 1000)(torch.randn(200, 64)), torch.randint(1000, (200,)))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)
