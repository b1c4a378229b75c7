import numpy as np
import pytest
import torch
from torch.nn import functional

from adaptmed.heads.linear import LinearHead, classification_head, text_informed_head
from adaptmed.heads.prompts import class_directions


def test_known_weights_are_copied():
    weight, bias = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, -0.5])
    head = LinearHead.from_weights(weight, bias)
    torch.testing.assert_close(head(torch.tensor([[1.0, -1.0]])), torch.tensor([[-0.5, -1.5]]))
    with torch.no_grad():
        head.linear.weight.zero_()
    assert weight[1, 1] == 4


def test_two_layer_head_is_that_of_the_paper():
    head = classification_head(6, 3, hidden=4)
    assert [type(layer).__name__ for layer in head] == ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert head[0].p == head[4].p == 0.1
    assert head[1].bias is None
    assert sum(parameter.numel() for parameter in head.parameters()) == 6 * 4 + 2 * 4 + 4 * 3 + 3


@pytest.mark.parametrize("hidden", [None, 8])
def test_items_of_a_batch_are_isolated_in_evaluation(hidden):
    head = classification_head(6, 3, hidden=hidden).eval()
    batch = torch.randn(5, 6)
    torch.testing.assert_close(head(batch)[2:3], head(batch[2:3]))


def test_text_informed_head_starts_at_zero_shot():
    images = functional.normalize(torch.randn(4, 6), dim=-1)
    prompts = functional.normalize(torch.randn(3, 6), dim=-1)
    expected = torch.softmax(images @ prompts.T / 0.07, dim=-1)
    for directions in (prompts, class_directions(prompts)):  # the mean prompt cancels in the softmax
        head = text_informed_head(directions, scale=1 / 0.07)
        torch.testing.assert_close(head(images).softmax(-1), expected)
    assert all(parameter.requires_grad for parameter in head.parameters())
