"""The laws of objectives, and hand-computed values, for what compares masks."""

import math

import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.objectives.overlap import (
    dice_cross_entropy,
    dice_focal,
    dice_loss,
    focal_loss,
    paper_dice_focal,
    pixel_cross_entropy,
)

OBJECTIVES = {
    "dice": dice_loss,
    "dice-pooled": lambda logits, mask: dice_loss(logits, mask, pooled=True),
    "cross-entropy": pixel_cross_entropy,
    "focal": focal_loss,
    "dice-cross-entropy": dice_cross_entropy,
    "dice-focal": lambda logits, mask: dice_focal(logits, mask, focal_weight=3.0, pooled=True),
    "paper": paper_dice_focal,
}
SIZES = {"2d": (3, 4), "3d": (2, 3, 2)}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(params=[1, 3])
def classes(request):
    return request.param


def masks(batch, classes, size=(3, 4), *, seed=0):
    """Logits in float64 and masks in which a fifth of the pixels and, from four items on, one item is not labelled."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    mask = torch.randint(max(classes, 2), (batch, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = -1
    mask[3:4] = -1
    return logits, mask


def test_the_order_of_the_batch_does_not_matter(objective, classes):
    logits, mask = masks(6, classes)
    rows = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(objective(logits, mask), objective(logits[rows], mask[rows]))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_right(objective, classes, size):
    logits, mask = masks(4, classes, SIZES[size])
    assert torch.autograd.gradcheck(lambda x: objective(x, mask), logits.requires_grad_())


def test_a_batch_of_one_is_finite(objective, classes):
    logits, mask = masks(1, classes)
    loss = objective(logits.requires_grad_(), mask)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


def test_nothing_labelled_gives_zero_with_a_graph(objective, classes):
    logits, mask = masks(2, classes)
    loss = objective(logits.requires_grad_(), torch.full_like(mask, -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_what_is_not_labelled_changes_nothing(objective, classes):
    logits, mask = masks(5, classes)
    other = torch.where((mask == -1)[:, None], logits + 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(objective(logits, mask), objective(other, mask))
    torch.testing.assert_close(objective(logits, mask), objective(logits[[0, 1, 2, 4]], mask[[0, 1, 2, 4]]))


def test_empty_masks_are_finite_and_push_towards_nothing(objective, classes):
    logits, mask = masks(2, classes)
    empty = torch.zeros_like(mask)
    loss = objective(logits.requires_grad_(), empty)
    loss.backward()
    assert loss.isfinite()
    foreground = logits.grad if classes == 1 else logits.grad[:, 1:].sum(1)
    assert foreground.sum() > 0  # a step against the gradient lowers the foreground
    nothing = torch.full_like(logits, -200.0)
    if classes > 1:
        nothing[:, 0] = 200.0
    assert objective(nothing.detach(), empty).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(objective, dtype):
    logits = torch.full((1, 1, 300, 300), 4.0, dtype=dtype, requires_grad=True)
    loss = objective(logits, torch.ones(1, 300, 300, dtype=torch.int16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 < loss < 0.2
    assert logits.grad.isfinite().all()


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def numpy_probabilities(logits):
    """Of every class, background first, also where there is one logit."""
    values = logits.numpy()
    return softmax(np.concatenate([np.zeros_like(values), values], 1) if values.shape[1] == 1 else values)


def numpy_dice(logits, mask, *, pooled, smooth):
    probabilities, mask = numpy_probabilities(logits), mask.numpy()
    groups = [range(len(mask))] if pooled else [[item] for item in range(len(mask)) if (mask[item] >= 0).any()]
    losses = []
    for rows in groups:
        for label in range(1, probabilities.shape[1]):
            known = mask[list(rows)] >= 0
            p, t = probabilities[list(rows), label][known], (mask[list(rows)] == label)[known]
            losses.append(1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
    return np.mean(losses)


def numpy_focal(logits, mask, gamma):
    probabilities, mask = numpy_probabilities(logits), mask.numpy()
    losses = []
    for item, *place in np.argwhere(mask >= 0):
        p = probabilities[(item, mask[(item, *place)], *place)]
        losses.append(-((1 - p) ** gamma) * np.log(p))
    return np.mean(losses)


@pytest.mark.parametrize("size", SIZES)
def test_against_numpy(classes, size):
    logits, mask = masks(5, classes, SIZES[size])
    item, pooled, paper = (
        numpy_dice(logits, mask, pooled=over, smooth=smooth)
        for over, smooth in ((False, 1e-5), (True, 1e-5), (True, 1.0))
    )
    entropy, focal = numpy_focal(logits, mask, 0.0), numpy_focal(logits, mask, 2.0)
    for ours, theirs in (
        (dice_loss(logits, mask), item),
        (dice_loss(logits, mask, pooled=True), pooled),
        (pixel_cross_entropy(logits, mask), entropy),
        (focal_loss(logits, mask), focal),
        (focal_loss(logits, mask, gamma=1.5), numpy_focal(logits, mask, 1.5)),
        (dice_cross_entropy(logits, mask, dice_weight=0.3, cross_entropy_weight=0.7), 0.3 * item + 0.7 * entropy),
        (dice_focal(logits, mask, dice_weight=2.0, gamma=1.5), 2 * item + numpy_focal(logits, mask, 1.5)),
        (paper_dice_focal(logits, mask), 10 * focal - np.log(1 - paper)),
    ):
        assert ours.item() == pytest.approx(theirs, rel=1e-6)


def test_the_papers_loss_by_hand():
    """Two pixels, one of them foreground, p = 1/2 everywhere: focal log(2) / 4, Dice (2 * 0.5 + 1) / (1 + 1 + 1)."""
    loss = paper_dice_focal(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]]))
    assert loss.item() == pytest.approx(10 * math.log(2) / 4 - math.log(2 / 3))


def test_a_perfect_mask_costs_nothing(objective):
    mask = torch.tensor([[[0, 1], [2, 0]]])
    logits = 200 * torch.nn.functional.one_hot(mask, 3).movedim(-1, 1).double()
    assert objective(logits, mask).item() == pytest.approx(0, abs=1e-9)


def test_one_class_is_two_classes_with_background_at_zero():
    logits, mask = masks(4, 1)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    for name in ("dice", "focal", "paper"):
        torch.testing.assert_close(OBJECTIVES[name](logits, mask), OBJECTIVES[name](two, mask))


def test_masks_of_another_size_are_refused(objective):
    with pytest.raises(InputError, match=r"`mask`: expected shape \(2, 3, 4\), but got \(2, 4, 3\)"):
        objective(torch.zeros(2, 1, 3, 4), torch.zeros(2, 4, 3, dtype=torch.long))


def test_balanced_by_its_whole_share_every_class_counts_alike():
    logits, mask = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[0, 0, :3], mask[1, 2, 2], mask[1, 3] = 1, 2, -1
    each = -logits.log_softmax(1).gather(1, mask.clamp(min=0)[:, None])[:, 0]
    by_class = torch.stack([each[mask == number].mean() for number in range(3)])
    torch.testing.assert_close(pixel_cross_entropy(logits, mask, balance=1.0), by_class.mean())
    torch.testing.assert_close(pixel_cross_entropy(logits, mask, balance=0.0), each[mask >= 0].mean())


def test_balanced_by_the_root_of_its_share():
    logits, mask = torch.randn(1, 2, 1, 5), torch.tensor([[[0, 0, 0, 0, 1]]])
    each = -logits.log_softmax(1).gather(1, mask[:, None])[:, 0].flatten()
    weights = torch.tensor([(5 / 4) ** 0.5] * 4 + [5**0.5])
    expected = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(pixel_cross_entropy(logits, mask, balance=0.5), expected)


def test_dice_of_the_classes_that_are_there_is_that_of_these_alone():
    logits, mask = torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64)
    mask[0, 1], mask[1, 2, 0] = 1, 3
    p, y = logits.softmax(1), torch.nn.functional.one_hot(mask, 4).movedim(-1, 1)
    ratio = 2 * (p * y).sum((0, 2, 3)) / (p + y).sum((0, 2, 3))
    found = dice_loss(logits, mask, pooled=True, present=True)
    torch.testing.assert_close(found, 1 - ratio[[1, 3]].mean(), rtol=1e-4, atol=1e-5)
    nothing = torch.zeros_like(mask)
    assert dice_loss(logits, nothing, pooled=True, present=True) == 0
