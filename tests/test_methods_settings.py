"""Methods are made of parts whose ranges are checked; what a run has written of its method is read back."""

import json
from dataclasses import asdict, fields, replace

import jaxtyping
import pytest

from adaptmed import methods
from adaptmed.errors import InputError
from adaptmed.methods import Masking, Method, Schedule

EVERY = {
    f"{preset.__name__}-{size}": preset(size=size)
    for preset in (methods.adaptor, methods.m3ae, methods.umd)
    for size in ("light", "paper")
} | {"adaptor-faithful": methods.adaptor(faithful=True), "umd-faithful": methods.umd(faithful=True)}


@pytest.mark.parametrize("name", EVERY)
def test_a_method_is_read_back_from_json(name):
    method = EVERY[name]
    assert methods.from_json(json.loads(json.dumps(asdict(method)))) == method


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 1.0}, "`method`: expected the fields of a method, but got .*temperature"),
        ({"masking": {"blocks": 3}}, "the fields of a method, but got .*blocks"),
        ({"schedule": {"momentum": 0.9}}, "the fields of a method, but got .*momentum"),
        ({"schedule": None}, "the fields of a method"),
    ],
)
def test_an_unknown_field_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        methods.from_json({**asdict(methods.umd()), **change})


def test_a_method_without_a_schedule_is_refused():
    found = asdict(methods.umd())
    del found["schedule"]
    with pytest.raises(InputError, match="the fields of a method, but got 'schedule'"):
        methods.from_json(found)


JOINT = "`joint`: expected joint masking beside feature reconstruction, but got False"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({name: bad}, f"`{name}`: expected a share")
            for name in ("word_share", "patch_ratio")
            for bad in (0.0, 1.0, 1.5)
        ],
        *[
            ({name: bad}, f"`{name}`: expected above 0")
            for name in ("weight_words", "weight_patches")
            for bad in (0.0, -1.0)
        ],
        ({"word_share": float("nan")}, "`word_share`: expected a share above 0 and below 1, but got nan"),
        ({"weight_text_features": -0.1, "joint": True}, "`weight_text_features`: expected 0 or more"),
        ({"weight_image_features": float("nan"), "joint": True}, "`weight_image_features`: expected 0 or more"),
        ({"weight_text_features": 0.5}, JOINT),
        ({"weight_image_features": 0.5}, JOINT),
        ({"teacher_decay": 1.0}, r"`teacher_decay`: expected a decay in \[0, 1\), but got 1.0"),
        ({"teacher_decay": -0.1}, "`teacher_decay`: expected a decay"),
    ],
)
def test_masking_out_of_range_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Masking(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": "cross"}, "`fusion`: expected 'co' where words and patches are hidden, but got 'cross'"),
        ({"weight_matching": -1.0}, "`weight_matching`: expected 0 or more"),
        ({"weight_contrastive": float("nan")}, "`weight_contrastive`: expected 0 or more"),
        ({"matching_share": 1.1}, r"`matching_share`: expected a share in \[0, 1\]"),
        ({"weight_image_to_text": -0.1}, "`weight_image_to_text`: expected a share"),
        ({"token_dropout": 1.0}, r"`token_dropout`: expected a share in \[0, 1\)"),
    ],
)
def test_methods_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(methods.m3ae(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "`epochs`: expected at least 1"),
        ({"batch_size": 1}, "`batch_size`: expected at least 2"),
        ({"patience": 0}, "`patience`: expected at least 1"),
        ({"least_steps": -1}, "`least_steps`: expected at least 0"),
        ({"learning_rate": 0.0}, "`learning_rate`: expected above 0"),
        ({"clip": float("nan")}, "`clip`: expected above 0"),
        ({"weight_decay": -0.1}, "`weight_decay`: expected 0 or more"),
        ({"warmup_share": 1.5}, "`warmup_share`: expected a share"),
        ({"ema": 1.0}, "`ema`: expected a decay"),
    ],
)
def test_schedules_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Schedule(**change)


@pytest.fixture
def unchecked():
    """Switch the suite's own checks of types off, so that a wrong size reaches the preset as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("preset", [methods.adaptor, methods.m3ae, methods.umd])
def test_an_unknown_size_is_refused(preset):
    with pytest.raises(InputError, match="`size`: expected 'light' or 'paper', but got 'huge'"):
        preset(size="huge")


def test_every_loss_has_the_published_weight():
    features = {"text_features": 0.5, "image_features": 0.5}
    assert methods.umd().weights == {"contrastive": 0, "matching": 1, "words": 0.5, "patches": 0.5, **features}
    nothing = dict.fromkeys(features, 0)
    assert methods.m3ae().weights == {"contrastive": 0, "matching": 1, "words": 1, "patches": 1, **nothing}
    assert methods.adaptor().weights == {"contrastive": 1, "matching": 0.3}
    assert methods.umd(size="paper").weights == methods.umd().weights


def test_the_papers_numbers():
    for method in (methods.m3ae(size="paper"), methods.umd(size="paper")):
        assert (method.width, method.layers, method.heads, method.dropout) == (768, 6, 12, 0.1)
        assert (method.schedule.batch_size, method.schedule.learning_rate) == (256, 5e-5)
        assert (method.schedule.weight_decay, method.schedule.warmup_share) == (0.01, 0.1)
        hidden = method.masking
        assert (hidden.word_share, hidden.patch_ratio, hidden.teacher_decay) == (0.15, 0.75, 0.995)
        assert (hidden.decoder_width, hidden.decoder_blocks, hidden.decoder_heads) == (384, 4, 6)
        assert not hidden.tied_words
    assert methods.m3ae(size="paper").masking.patch_layer == 3
    assert methods.umd(size="paper").masking.patch_layer is None
    assert not methods.m3ae().masking.teaches
    assert methods.umd().masking.teaches


def test_methods_are_compared_by_value_and_cannot_be_changed():
    assert methods.umd() == methods.umd() != methods.umd(faithful=True)
    with pytest.raises(AttributeError, match="cannot assign to field 'width'"):
        methods.umd().width = 3
    assert {field.name for field in fields(Method)} >= {"masking", "schedule", "negatives", "negatives_by_label"}


def test_a_patch_layer_that_the_fusion_has_not_is_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"`patch_layer`: expected a layer from 0 to 2, but got 3\. Leave it out"):
        replace(methods.m3ae(), layers=2)
