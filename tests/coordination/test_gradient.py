"""GM-Coord: scores of each modality alone, published factors, gradients scaled once and noised alike everywhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn
from torch.nn import functional

from adaptmed.coordination.gradient import _modulate_at_once, _modulate_in_turn, coefficients, modality_groups, modulate
from adaptmed.coordination.scores import class_score, label_score, last_linear_logits, logits_alone
from adaptmed.errors import InputError

NAN = float("nan")


def answer_head(width=6, classes=5):
    """The head of M3AE and UMD for answers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, classes))


def factors_of(image, text, **options):
    return [k.item() for k in coefficients(torch.tensor(image), torch.tensor(text), **options)]


@pytest.mark.parametrize(
    ("image", "text", "k_image", "k_text"),
    [
        (1.0, 1.0, 1 - math.tanh(0.1), 1.0),  # a tie falls to the image: 0.9003
        (2.0, 3.0, 1.0, 1 - math.tanh(0.15)),
        (3.0, 2.0, 1 - math.tanh(0.15), 1.0),
        (0.0, 1.0, 1.0, 0.0),  # an infinite ratio
        (1.0, 0.0, 0.0, 1.0),
        (0.0, 0.0, 1.0, 1.0),  # nothing labelled
    ],
)
def test_the_published_factors(image, text, k_image, k_text):
    assert factors_of(image, text) == pytest.approx([k_image, k_text], abs=1e-7)


def test_the_factor_jumps_at_a_tie_as_published():
    assert factors_of(1.0, 1.0)[0] == pytest.approx(0.9003, abs=5e-5)
    assert factors_of(1.0, 1.0 + 1e-6) == pytest.approx([1.0, 1 - math.tanh(0.1)], abs=1e-5)


SCORES = st.floats(2**-10, 2**10, width=32)  # as the factors see them: closer ones would be a tie to them alone


@given(SCORES, SCORES, st.floats(0, 2))
def test_only_the_stronger_is_held_back_the_more_the_stronger_it_is(image, text, alpha):
    k_image, k_text = factors_of(image, text, alpha=alpha)
    assert max(k_image, k_text) == 1
    ratio = max(image, text) / min(image, text)
    assert min(k_image, k_text) == pytest.approx(1 - math.tanh(alpha * ratio), abs=1e-5)
    assert (k_text if image > text else k_image) == 1 or image == text


def test_class_scores_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]])
    assert class_score(logits, torch.tensor([1, 0, -1])).item() == pytest.approx(3 / 4 + 1 / 2)
    assert class_score(logits, torch.full((3,), -1)).item() == 0


def test_label_scores_by_hand():
    logits = torch.tensor([[math.log(3), 0.0, math.log(3)]])
    assert label_score(logits, torch.tensor([[1.0, NAN, 0.0]])).item() == pytest.approx(3 / 4 + 1 / 4)
    assert label_score(logits, torch.full((1, 3), NAN)).item() == 0


def test_scores_of_parts_of_a_batch_add_up_and_its_order_does_not_matter():
    logits, labels = torch.randn(9, 4), torch.randint(-1, 4, (9,))
    whole = class_score(logits, labels)
    torch.testing.assert_close(whole, class_score(logits[:4], labels[:4]) + class_score(logits[4:], labels[4:]))
    torch.testing.assert_close(whole, class_score(logits.flip(0), labels.flip(0)))


def test_each_modality_alone_passes_the_whole_head():
    head, joint = answer_head(), torch.randn(4, 6, requires_grad=True)
    image, text = logits_alone(head, joint)
    torch.testing.assert_close(text, head(joint * torch.tensor([1.0, 1, 1, 0, 0, 0])))
    torch.testing.assert_close(image, head(joint * torch.tensor([0.0, 0, 0, 1, 1, 1])))
    assert not image.requires_grad
    torch.testing.assert_close(logits_alone(head, joint[2:3])[0], image[2:3])  # also alone in its batch


def test_scoring_changes_neither_the_heads_mode_nor_its_statistics_nor_what_is_random():
    head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2)).train()
    head[2].eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    state = torch.get_rng_state()
    logits_alone(head, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in head] == [True, True, False]
    assert head.training
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_the_released_logits_pass_the_last_layer_alone():
    head, joint = answer_head(), torch.randn(4, 6)
    image, text = last_linear_logits(head[-1], joint)
    weight, bias = head[-1].weight, head[-1].bias
    torch.testing.assert_close(text, joint[:, :3] @ weight[:, :3].T + bias / 2)
    torch.testing.assert_close(image, joint[:, 3:] @ weight[:, 3:].T + bias / 2)
    torch.testing.assert_close(image + text, head[-1](joint))
    assert not torch.allclose(image, logits_alone(head, joint)[0])
    bare = nn.Linear(6, 5, bias=False)
    torch.testing.assert_close(sum(last_linear_logits(bare, joint)), bare(joint))


def test_a_last_layer_of_another_width_is_refused():
    with pytest.raises(InputError, match="a last layer that reads 6 values, but got 512"):
        last_linear_logits(nn.Linear(512, 3), torch.zeros(2, 6))


def parameters_with(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def two_groups():
    generator = torch.Generator().manual_seed(0)
    shapes = ((30, 20), (7,), (5, 3, 4)), ((11, 6), (200,))
    scales = ((1.0, 3.0, 1e-6), (1e3, 0.1))
    return [
        [s * torch.randn(*size, generator=generator) + s / 2 for size, s in zip(sizes, ss, strict=True)]
        for sizes, ss in zip(shapes, scales, strict=True)
    ]


FACTORS = {"image": torch.tensor(0.75), "text": torch.tensor(1.0)}


def modulated(seed):
    image, text = two_groups()
    groups = {"image": parameters_with(*image), "text": parameters_with(*text)}
    modulate(groups, FACTORS, noise_seed=seed)
    return [p.grad for group in groups.values() for p in group]


def test_without_noise_gradients_are_scaled_and_nothing_else():
    image, text = two_groups()
    for found, expected in zip(modulated(None), [*(0.75 * g for g in image), *text], strict=True):
        assert torch.equal(found, expected)


def test_the_noise_has_the_deviation_of_the_gradient_before_it_is_scaled():
    """Against the released line, one tensor at a time: ``k * g + normal * (g.std() + 1e-8)``, whatever is drawn."""
    image, text = two_groups()
    of_seed = [modulated(seed) for seed in range(400)]
    for place, (gradient, factor) in enumerate([*((g, 0.75) for g in image), *((g, 1.0) for g in text)]):
        noise = torch.stack([found[place] for found in of_seed]) - factor * gradient
        assert noise.std().item() == pytest.approx(gradient.std().item(), rel=0.1)
        assert abs(noise.mean().item()) < 0.2 * gradient.std().item()


def test_the_noise_is_normal_and_new_in_every_step():
    gradient = torch.randn(300, 300)
    noises = []
    for seed in (1, 2):
        (parameter,) = parameters_with(gradient)
        modulate({"image": [parameter]}, {"image": torch.tensor(0.5)}, noise_seed=seed)
        noises.append(((parameter.grad - 0.5 * gradient) / gradient.std()).flatten())
        assert kstest(noises[-1][:5000].numpy(), "norm").pvalue > 0.001
        assert noises[-1].std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(torch.stack(noises))[0, 1].abs() < 0.02
    assert torch.corrcoef(torch.stack([noises[0], gradient.flatten()]))[0, 1].abs() < 0.02


def test_replicas_stay_equal_and_nothing_else_that_is_random_moves():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = modulated(9)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, modulated(9), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, modulated(10), strict=True))


def test_single_elements_and_parameters_without_gradient_are_left_alone():
    one, none, two = parameters_with(torch.tensor([3.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]))
    none.grad = None
    modulate({"image": [one, none, two], "text": []}, FACTORS, noise_seed=0)
    assert one.grad.item() == 3.0
    assert none.grad is None
    assert two.grad.isfinite().all()
    modulate({"image": [none]}, FACTORS, noise_seed=0)
    assert none.grad is None


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_large_gradient_keeps_its_deviation(offset):
    gradient = torch.randn(1000, 500, generator=torch.Generator().manual_seed(0)) + offset
    (parameter,) = parameters_with(gradient)
    modulate({"image": [parameter]}, {"image": torch.tensor(0.0)}, noise_seed=4)
    assert parameter.grad.std().item() == pytest.approx(gradient.double().std().item(), rel=0.005)


def test_noise_of_more_elements_than_the_table_holds_is_drawn(monkeypatch):
    monkeypatch.setattr("adaptmed.coordination.gradient._TABLE_SIZE", 10)
    gradient = torch.randn(100, 100)
    (parameter,) = parameters_with(gradient)
    modulate({"image": [parameter]}, {"image": torch.tensor(0.0)}, noise_seed=4)
    assert kstest((parameter.grad / gradient.std()).flatten().numpy(), "norm").pvalue > 0.001


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_constant_gradient_gets_next_to_no_noise(value):
    (parameter,) = parameters_with(torch.full((64, 64), value))
    modulate({"image": [parameter]}, {"image": torch.tensor(1.0)}, noise_seed=0)
    assert (parameter.grad - value).abs().max() < 1e-2 * value + 1e-7


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_layers = nn.Linear(2, 2)
        self.image_layers_frozen = nn.Linear(2, 2).requires_grad_(False)
        self.text_layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.shared = nn.Linear(2, 2)
        self.pooler = nn.Linear(2, 2)


def test_parameters_are_sorted_by_modality():
    pair = Pair()
    groups = modality_groups(pair.named_parameters(), {"image": ["image_layers"], "text": ["text_layers.1"]})
    assert [id(p) for p in groups["image"]] == [id(p) for p in pair.image_layers.parameters()]
    assert [id(p) for p in groups["text"]] == [id(p) for p in pair.text_layers[1].parameters()]


def test_shared_and_missing_layers_are_refused():
    named = list(Pair().named_parameters())
    for prefix in ("image_layer", "image_layers_frozen", "nothing"):
        with pytest.raises(InputError, match=rf"prefixes\[image\]`: expected names of modules, but got {prefix}\."):
            modality_groups(named, {"image": [prefix]})
    with pytest.raises(InputError, match=r"shared\.weight under image shared and text shared"):
        modality_groups(named, {"image": ["shared"], "text": ["shared"]})
    with pytest.raises(InputError, match=r"each parameter once, but got text_layers\.0"):
        modality_groups(named, {"text": ["text_layers", "text_layers.0"]})


def test_a_whole_step_holds_back_the_modality_that_answers_alone():
    """The label is written in the image half; the text half is noise."""
    torch.manual_seed(0)
    labels = torch.randint(2, (64,))
    image, text = nn.Linear(2, 2), nn.Linear(2, 2)
    head = nn.Linear(4, 2)
    inputs = functional.one_hot(labels, 2).float() * 4
    optimiser = torch.optim.SGD([*image.parameters(), *text.parameters(), *head.parameters()], lr=0.5)
    for step in range(60):
        joint = torch.cat([text(torch.randn(64, 2)), image(inputs)], dim=1)
        loss = functional.cross_entropy(head(joint), labels)
        optimiser.zero_grad()
        loss.backward()
        k_image, k_text = coefficients(*(class_score(z, labels) for z in logits_alone(head, joint)))
        groups = {"image": list(image.parameters()), "text": list(text.parameters())}
        modulate(groups, {"image": k_image, "text": k_text}, noise_seed=step)
        optimiser.step()
    assert k_image < 0.9
    assert k_text == 1
    assert loss < 0.05


@pytest.mark.parametrize("seed", [None, 7])
def test_all_at_once_as_on_a_gpu_and_one_after_the_other_are_the_same(seed):
    found = []
    for way, factor in ((_modulate_at_once, torch.tensor(0.75)), (_modulate_in_turn, 0.75)):
        gradients = [gradient.clone() for side in two_groups() for gradient in side]
        way(gradients, factor, None if seed is None else torch.Generator().manual_seed(seed))
        found.append(gradients)
    for at_once, in_turn in zip(*found, strict=True):
        torch.testing.assert_close(at_once, in_turn, rtol=1e-3, atol=1e-3 * in_turn.std().item())
