import math

import pytest
import torch
from torch.nn import functional

from adaptmed.objectives.supervised import masked_bce, masked_cross_entropy

NAN = float("nan")


def test_bce_by_hand():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 5.0]])
    labels = torch.tensor([[1.0, 0.0], [NAN, 1.0]])
    expected = (math.log(2) + math.log1p(math.exp(2)) + math.log1p(math.exp(-5))) / 3
    assert masked_bce(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0], [9.0, 0.0]])
    expected = (math.log(2) + math.log1p(math.exp(2))) / 2
    assert masked_cross_entropy(logits, torch.tensor([1, 0, -1])).item() == pytest.approx(expected, rel=1e-6)


def test_fully_labelled_equals_torch():
    logits, codes = torch.randn(7, 3), torch.randint(3, (7,))
    labels = torch.randint(2, (7, 3)).float()
    torch.testing.assert_close(masked_bce(logits, labels), functional.binary_cross_entropy_with_logits(logits, labels))
    torch.testing.assert_close(masked_cross_entropy(logits, codes), functional.cross_entropy(logits, codes))


@pytest.mark.parametrize(
    ("objective", "labels"),
    [(masked_bce, torch.full((2, 3), NAN)), (masked_cross_entropy, torch.full((2,), -1))],
)
def test_nothing_labelled_is_zero_with_a_graph(objective, labels):
    logits = torch.randn(2, 3, requires_grad=True)
    loss = objective(logits, labels)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (masked_bce, torch.tensor([[1.0, NAN, 0.0], [0.0, 1.0, NAN], [NAN, NAN, NAN]], dtype=torch.float64)),
        (masked_cross_entropy, torch.tensor([2, -1, 0])),
    ],
)
def test_gradients_permutation_and_the_unlabelled(objective, labels):
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: objective(x, labels), logits)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(objective(logits[order], labels[order]), objective(logits, labels))
    gradient = torch.autograd.grad(objective(logits, labels), logits)[0]
    unlabelled = labels.isnan() if labels.ndim == 2 else (labels < 0)[:, None].expand(3, 3)
    assert gradient[unlabelled].eq(0).all()
    assert gradient[~unlabelled].ne(0).all()
    alone = objective(logits[:1], labels[:1])
    assert torch.isfinite(alone)
