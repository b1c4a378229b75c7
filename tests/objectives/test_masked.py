"""Hidden words, hidden pixels and the teacher's features: values by hand, oracles, what does not count."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from adaptmed.errors import InputError
from adaptmed.objectives.masked import masked_patch_loss, masked_word_loss, normalise, patchify
from adaptmed.objectives.reconstruction import image_feature_loss, text_feature_loss

NAN = float("nan")


def test_word_loss_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]], [[9.0, 9.0, 1.0], [0.0, 0.0, math.log(6)]]])
    targets = torch.tensor([[0, 1], [-1, 2]])
    expected = (math.log(3) + math.log(4 / 2) + math.log(8 / 6)) / 3  # one mean over three hidden words of two texts
    assert masked_word_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_word_loss_of_the_hidden_places_alone_is_the_same():
    logits, targets = torch.randn(3, 5, 7), torch.randint(-1, 7, (3, 5))
    hidden = targets >= 0
    together = masked_word_loss(logits, targets)
    torch.testing.assert_close(together, masked_word_loss(logits[hidden], targets[hidden]))
    torch.testing.assert_close(together, functional.cross_entropy(logits[hidden], targets[hidden]))


def test_patches_by_the_published_rearrangement():
    """MAE cuts ``n c (h p) (w q)`` into ``n (h w) (p q c)``; 288 px in patches of 16 give 324 of 768 values."""
    pixels = torch.randn(2, 3, 288, 288)
    patches = patchify(pixels, 16)
    assert patches.shape == (2, 324, 768)
    for row, column in ((0, 0), (3, 17), (17, 2)):
        corner = pixels[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert torch.equal(patches[:, 18 * row + column], corner.permute(0, 2, 3, 1).flatten(1))
    wide = patchify(torch.arange(24.0).reshape(1, 1, 4, 6), 2)
    assert wide[0, :, 0].tolist() == [0, 2, 4, 12, 14, 16]


def test_a_side_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiples of 16 px, but got 32 x 40"):
        patchify(torch.zeros(1, 3, 32, 40), 16)


def test_patches_are_standardised_with_the_unbiased_variance():
    patches = np.random.default_rng(0).normal(3, 2, (2, 3, 12))
    ours = normalise(torch.tensor(patches))
    theirs = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)
    assert normalise(torch.full((1, 1, 4), 7.0, dtype=torch.bfloat16)).abs().sum() == 0


def test_patch_loss_by_hand_and_only_over_hidden_patches():
    patches = torch.tensor([[[-1.0, 0.0, 1.0], [5.0, 5.0, 5.0], [0.0, 1.0, 2.0]]], dtype=torch.float64)
    predicted = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [NAN, math.inf, 0.0]]], dtype=torch.float64)
    predicted.requires_grad_()
    loss = masked_patch_loss(predicted, patches, torch.tensor([[True, True, False]]))
    loss.backward()
    standardised = 1 / (1 + 1e-6)  # variance 1; the second patch is of one colour, hence zeros
    assert loss.item() == pytest.approx((2 * standardised / 3 + (1 + 4 + 9) / 3) / 2, rel=1e-12)
    assert predicted.grad[0, 2].tolist() == [0, 0, 0]
    assert (predicted.grad[0, 1] > 0).all()


def test_predicting_nothing_costs_the_share_of_variance():
    """Zeros against standardised patches: (n - 1) / n, the unbiased variance's mark."""
    patches = torch.randn(3, 4, 48, dtype=torch.float64)
    loss = masked_patch_loss(torch.zeros_like(patches), patches, torch.ones(3, 4, dtype=torch.bool))
    assert loss.item() == pytest.approx(47 / 48, rel=1e-5)


def test_feature_losses_by_hand():
    predicted = torch.tensor([[[0.0, 1.0], [2.0, 2.0]], [[1.0, 1.0], [8.0, 8.0]]])
    target = torch.tensor([[[0.0, 3.0], [2.0, 5.0]], [[1.0, 0.0], [0.0, 0.0]]])
    counted = torch.tensor([[True, True], [True, False]])
    per_token = [4 / 2, 9 / 2, 1 / 2]
    for loss in (image_feature_loss, text_feature_loss):
        assert loss(predicted, target, counted).item() == pytest.approx(sum(per_token) / 3)
    released = text_feature_loss(predicted, target, counted, faithful=True)
    assert released.item() == pytest.approx((sum(per_token) + 64) / 4)  # one mean over all B x L x D
    torch.testing.assert_close(released, functional.mse_loss(predicted, target))


@pytest.mark.parametrize("loss", [image_feature_loss, text_feature_loss])
def test_the_target_has_a_gradient_only_where_the_released_code_gives_it_one(loss):
    counted = torch.tensor([[True, True, False]])
    for faithful in (False, True):
        predicted, target = torch.randn(2, 1, 3, 4).unbind(0)
        predicted.requires_grad_()
        target.requires_grad_()
        loss(predicted, target, counted, faithful=faithful).backward()
        assert predicted.grad[0, :2].ne(0).all()
        assert (target.grad is not None) == faithful


def test_padding_may_hold_anything():
    predicted, target = torch.randn(2, 2, 5, 4).unbind(0)
    valid = torch.arange(5)[None] < torch.tensor([5, 3])[:, None]
    noisy = target.masked_fill(~valid[..., None], NAN)
    expected = text_feature_loss(predicted, target, valid)
    assert torch.equal(text_feature_loss(predicted, noisy, valid), expected)
    longer = [functional.pad(x, (0, 0, 0, 6), value=3.0) for x in (predicted, target)]
    torch.testing.assert_close(text_feature_loss(*longer, functional.pad(valid, (0, 6))), expected)


def test_half_precision_is_compared_in_float32():
    predicted = torch.full((1, 1, 4), 300.0, dtype=torch.float16)
    counted = torch.ones(1, 1, dtype=torch.bool)
    assert image_feature_loss(predicted, torch.zeros_like(predicted), counted).item() == 90000
