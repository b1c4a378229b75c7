"""Laws of every objective: permutation, gradients, a batch of one, nothing labelled."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.objectives.contrastive import info_nce
from adaptmed.objectives.masked import masked_patch_loss, masked_word_loss
from adaptmed.objectives.matching import matching_loss
from adaptmed.objectives.reconstruction import image_feature_loss, text_feature_loss


def unit(batch, width=6, seed=0, dtype=torch.float64):
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(x, dim=-1)


def contrastive_case(batch, seed=0):
    group = torch.arange(batch) % max(1, batch - 1)
    return (unit(batch, seed=seed), unit(batch, seed=seed + 1)), lambda a, b, rows=slice(None): info_nce(
        a, b, scale=7.0, weight_image_to_text=0.3, text_group=group[rows]
    )


def matching_case(batch, seed=0):
    logits = torch.randn(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matches = (torch.arange(batch) % 2).double()
    return (logits,), lambda a, rows=slice(None): matching_loss(a, matches[rows])


def word_case(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 3, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 5, (batch, 3), generator=generator)
    return (logits,), lambda a, rows=slice(None): masked_word_loss(a, targets[rows])


def token_case(objective, batch, seed=0):
    """An objective that compares tokens with others at the places that count."""
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randn(2, batch, 4, 3, generator=generator, dtype=torch.float64).unbind(0)
    counted = torch.rand(batch, 4, generator=generator) < 0.6
    return (predicted,), lambda a, rows=slice(None): objective(a, target[rows], counted[rows])


CASES = {
    "info_nce": contrastive_case,
    "matching": matching_case,
    "masked words": word_case,
    "masked patches": partial(token_case, masked_patch_loss),
    "image features": partial(token_case, image_feature_loss),
    "text features": partial(token_case, text_feature_loss),
    "released text features": partial(token_case, partial(text_feature_loss, faithful=True)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_the_order_of_the_batch_does_not_matter(case):
    tensors, objective = case(6)
    rows = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(objective(*tensors), objective(*(t[rows] for t in tensors), rows=rows))


def test_gradients_are_right(case):
    tensors, objective = case(4)
    assert torch.autograd.gradcheck(objective, [t.clone().requires_grad_() for t in tensors])


def test_a_batch_of_one_is_finite(case):
    tensors, objective = case(1)
    tensors = [t.clone().requires_grad_() for t in tensors]
    loss = objective(*tensors)
    loss.backward()
    assert loss.isfinite()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_nothing_labelled_gives_zero_with_a_graph():
    a, b = unit(3).requires_grad_(), unit(3, seed=1).requires_grad_()
    logits = torch.zeros(3, requires_grad=True)
    for loss in (
        info_nce(a, b, scale=1.0, text_group=torch.full((3,), -1)),
        matching_loss(logits, torch.full((3,), math.nan)),
    ):
        assert loss.item() == 0
        loss.backward()
    assert a.grad.abs().sum() == 0


@pytest.mark.parametrize("objective", [masked_patch_loss, image_feature_loss, text_feature_loss])
def test_no_token_that_counts_gives_zero_with_a_graph(objective):
    predicted = torch.randn(2, 3, 4, requires_grad=True)
    loss = objective(predicted, torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad.abs().sum() == 0


@pytest.mark.parametrize("places", [(2, 3), (0,)])
def test_no_hidden_word_gives_zero_with_a_graph(places):
    logits = torch.randn(*places, 5, requires_grad=True)
    loss = masked_word_loss(logits, torch.full(places, -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def numpy_info_nce(image, text, scale, weight, group):
    similarity = scale * image @ text.T
    losses = np.zeros(2)
    for axis, rows in ((0, similarity), (1, similarity.T)):
        for i in range(len(rows)):
            log_p = rows[i] - np.log(np.exp(rows[i]).sum())
            losses[axis] -= log_p[group == group[i]].mean() / len(rows)
    return weight * losses[0] + (1 - weight) * losses[1]


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_info_nce_against_numpy(weight):
    image, text = unit(7), unit(7, seed=1)
    group = torch.tensor([0, 1, 1, 2, 3, 1, 4])
    ours = info_nce(image, text, scale=5.0, weight_image_to_text=weight, text_group=group)
    theirs = numpy_info_nce(image.numpy(), text.numpy(), 5.0, weight, group.numpy())
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


def test_the_weight_is_on_image_to_text():
    """Two images, both nearest to text 0: images find their texts badly, text 0 and 1 choose by column."""
    image, text = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    image_to_text = info_nce(image, text, scale=4.0, weight_image_to_text=1.0)
    text_to_image = info_nce(image, text, scale=4.0, weight_image_to_text=0.0)
    assert text_to_image.item() == pytest.approx(math.log(2))  # every text sees two equal images
    assert image_to_text.item() == pytest.approx(math.log(1 + math.exp(4)) - 2.0)


def test_items_without_text_are_left_out():
    image, text = unit(4), unit(4, seed=1)
    kept = info_nce(image[:3], text[:3], scale=3.0)
    assert info_nce(image, text, scale=3.0, text_group=torch.tensor([0, 1, 2, -1])).item() == pytest.approx(kept.item())


def test_random_embeddings_start_near_log_batch():
    loss = info_nce(unit(256, 768), unit(256, 768, seed=1), scale=1 / 0.07)
    assert loss.item() == pytest.approx(math.log(256), abs=0.2)


def test_unequal_batches_and_weights_are_refused():
    with pytest.raises(InputError, match="expected 3 embeddings, one per image, but got 2"):
        info_nce(unit(3), unit(2), scale=1.0)
    with pytest.raises(InputError, match=r"a weight in \[0, 1\], but got 2.0"):
        info_nce(unit(3), unit(3), scale=1.0, weight_image_to_text=2.0)
