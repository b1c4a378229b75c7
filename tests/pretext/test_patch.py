"""The patch decoder: published sizes, positions, what it may and may not know."""

import math

import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.layers.sincos import sincos_positions
from adaptmed.objectives.masked import masked_patch_loss
from adaptmed.objectives.reconstruction import image_feature_loss, text_feature_loss
from adaptmed.pretext.feature import ImageFeatureHead, TextFeatureHead, released_image_features
from adaptmed.pretext.masking import hidden_patches, kept_patches
from adaptmed.pretext.patch import PatchDecoder, unshuffle


def small(width=8, **options):
    torch.manual_seed(0)
    return PatchDecoder(width, 12, **{"decoder_width": 16, "blocks": 2, "heads": 2, **options})


def test_positions_by_the_published_formula():
    found = sincos_positions((3, 5), 384)
    assert found.shape == (15, 384)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        expected = []
        for place in (column, row):
            angles = [place * 10000 ** (-j / 96) for j in range(96)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        torch.testing.assert_close(found[5 * row + column], torch.tensor(expected))


def test_a_width_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(InputError, match="expected a multiple of 4, but got 6"):
        sincos_positions((2, 2), 6)


def test_unshuffle_puts_every_patch_in_its_place():
    kept = torch.tensor([[4, 1], [0, 2]])
    visible = torch.randn(2, 2, 3)
    whole = unshuffle(visible, kept, torch.full((3,), 7.0), patches=5)
    for item in range(2):
        for place in range(5):
            where = (kept[item] == place).nonzero()
            expected = visible[item, where[0, 0]] if len(where) else torch.full((3,), 7.0)
            assert torch.equal(whole[item, place], expected)


@pytest.mark.parametrize(("side_px", "patches", "kept"), [(288, 324, 81), (384, 576, 144)])
def test_the_sizes_of_m3ae_and_umd(side_px, patches, kept):
    """M3AE at 288 px: 324 patches, 81 kept, 82 tokens in the fusion, (B, 324, 768) out; UMD at 384 px: 576, 144."""
    side = side_px // 16
    places = kept_patches(torch.arange(1), (side, side), seed=0)
    visible = torch.zeros(1, 1 + places.shape[1], 768)
    assert visible.shape == (1, kept + 1, 768)
    with torch.no_grad():
        assert PatchDecoder(768, 768)(visible, places, (side, side)).shape == (1, patches, 768)


def test_the_published_decoder_has_its_size():
    block = 4 * 384 * 385 + 384 * 1536 * 2 + 1536 + 384 + 4 * 384
    expected = 768 * 384 + 384 + 384 + 4 * block + 2 * 384 + 384 * 768 + 768
    assert sum(p.numel() for p in PatchDecoder(768, 768).parameters()) == expected


def test_the_order_of_the_visible_patches_says_nothing():
    decoder = small()
    kept, visible = torch.tensor([[3, 0, 7]]), torch.randn(1, 4, 8)
    order = torch.tensor([2, 0, 1])
    shuffled = torch.cat([visible[:, :1], visible[:, 1:][:, order]], dim=1)
    torch.testing.assert_close(decoder(visible, kept, (3, 3)), decoder(shuffled, kept[:, order], (3, 3)))


def test_items_do_not_meet_and_any_prefix_and_grid_fits():
    decoder = small()
    kept = torch.tensor([[3, 0], [5, 1]])
    for prefix in (0, 1, 5):
        visible = torch.randn(2, prefix + 2, 8)
        both = decoder(visible, kept, (2, 4))
        assert both.shape == (2, 8, 12)
        torch.testing.assert_close(both[1:], decoder(visible[1:], kept[1:], (2, 4)))


def test_positions_tell_hidden_patches_apart_and_a_prefix_has_none():
    decoder = small()
    predicted = decoder(torch.randn(1, 1, 8), torch.zeros(1, 0, dtype=torch.long), (2, 2))
    assert torch.pdist(predicted[0]).min() > 1e-3
    with torch.no_grad():
        decoder.embed.weight.zero_()  # then every prefix token is the same, wherever it stands
        one, two = (decoder(torch.randn(1, n, 8), torch.zeros(1, 0, dtype=torch.long), (2, 2)) for n in (1, 1))
    torch.testing.assert_close(one, two)


def test_every_parameter_learns_from_the_hidden_patches():
    decoder = small()
    kept = kept_patches(torch.arange(2), (3, 3), seed=0)
    loss = masked_patch_loss(
        decoder(torch.randn(2, 1 + kept.shape[1], 8), kept, (3, 3)), torch.randn(2, 9, 12), hidden_patches(kept, 9)
    )
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def feature_case():
    decoder = small()
    kept = torch.tensor([[4, 1, 7]])
    visible = torch.randn(1, 4, 8, requires_grad=True)
    teacher = torch.randn(1, 9, 8, requires_grad=True)
    return decoder, kept, visible, teacher


def test_the_students_features_learn_from_the_image_loss_and_the_teacher_does_not():
    decoder, kept, visible, teacher = feature_case()
    head = ImageFeatureHead(16, 8)
    image_feature_loss(*head(decoder.decode(visible, kept, (3, 3)), teacher), hidden_patches(kept, 9)).backward()
    assert visible.grad.abs().sum(-1).gt(0).all()
    assert teacher.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_the_released_image_loss_trains_the_mask_token_and_the_first_layer_alone():
    """What running the released code showed: no gradient to the student's visible features."""
    decoder, kept, visible, teacher = feature_case()
    hidden = hidden_patches(kept, 9)
    predicted, target = released_image_features(decoder, visible[:, 1:], kept, teacher)
    torch.testing.assert_close(predicted[hidden], decoder.mask_token.expand(6, -1))
    image_feature_loss(predicted, target, hidden, faithful=True).backward()
    assert visible.grad.abs().sum() == 0
    assert teacher.grad is None
    learning = {name for name, p in decoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == {"mask_token", "embed.weight", "embed.bias"}


def test_the_text_head_projects_the_student_and_in_the_released_form_the_teacher_too():
    student, teacher = torch.randn(2, 2, 3, 8).unbind(0)
    student.requires_grad_()
    teacher.requires_grad_()
    valid = torch.ones(2, 3, dtype=torch.bool)
    head = TextFeatureHead(8)
    predicted, target = head(student, teacher)
    assert torch.equal(target, teacher)
    text_feature_loss(predicted, target, valid).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None

    released = TextFeatureHead(8, faithful=True)
    predicted, target = released(student, teacher)
    torch.testing.assert_close(target, released.out(teacher))
    with torch.no_grad():
        released.out.weight.zero_()
    assert text_feature_loss(*released(student, teacher), valid, faithful=True).item() == 0  # the trivial solution
    assert text_feature_loss(predicted, target, valid, faithful=True).item() > 0
