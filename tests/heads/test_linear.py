import numpy as np
import pytest
import torch

from adaptmed.heads.linear import LinearHead, paper_head


def test_a_head_of_a_probe_gives_its_logits_and_standardises_its_input():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)) * [1e-2, 1.0, 1e3] + [5.0, 0.0, -7e3]
    features[:, 1] = 2.0
    weight, bias = rng.normal(size=(2, 3)) / [1e-2, 1.0, 1e3], rng.normal(size=2)
    head = LinearHead.of_probe(weight, bias, torch.from_numpy(features))
    expected = torch.from_numpy(features @ weight.T + bias).float()
    torch.testing.assert_close(head(torch.from_numpy(features).float()), expected, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(head.linear.weight[:, 0], torch.from_numpy(weight[:, 0] * features[:, 0].std()).float())
    assert head.std[1] == 1
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}


def test_two_layer_head_is_that_of_the_paper():
    head = paper_head(6, 3, hidden=4)
    assert [type(layer).__name__ for layer in head] == ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert head[0].p == head[4].p == 0.1
    assert head[1].bias is None
    assert sum(parameter.numel() for parameter in head.parameters()) == 6 * 4 + 2 * 4 + 4 * 3 + 3


@pytest.mark.parametrize("make", [LinearHead, paper_head])
def test_items_of_a_batch_are_isolated_in_evaluation(make):
    head = make(6, 3).eval()
    batch = torch.randn(5, 6)
    torch.testing.assert_close(head(batch)[2:3], head(batch[2:3]))
