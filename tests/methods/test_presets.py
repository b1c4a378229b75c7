"""Presets have the papers' numbers, and what a run has written of its method is read back, old runs included."""

import json

import jaxtyping
import pytest

from adaptmed import methods
from adaptmed.errors import InputError
from adaptmed.methods import PRESETS, from_json, preset_of, to_json

EVERY = {f"{name}-{size}": preset(size=size) for name, preset in PRESETS.items() for size in ("light", "paper")}
EVERY |= {f"{name}-faithful": preset_of(name, faithful=True) for name in ("adaptor", "umd")}


@pytest.mark.parametrize("name", EVERY)
def test_a_method_is_read_back_from_json(name):
    method = EVERY[name]
    assert from_json(json.loads(json.dumps(to_json(method)))) == method


def test_the_preset_is_called_as_its_method():
    assert all(preset().name == name for name, preset in PRESETS.items())
    assert preset_of("umd", size="paper") == methods.umd(size="paper")


def test_unknown_presets_and_options_are_refused():
    with pytest.raises(InputError, match="`method`: expected one of adaptor, m3ae, umd, but got mae"):
        preset_of("mae")
    message = r"`faithful`: expected a method that has this option \(adaptor, umd\), but got --method m3ae. Leave"
    with pytest.raises(InputError, match=message):
        preset_of("m3ae", faithful=True)


@pytest.fixture
def unchecked():
    """Switch the suite's own checks of types off, so that a wrong size reaches the preset as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("preset", PRESETS.values())
def test_an_unknown_size_is_refused(preset):
    with pytest.raises(InputError, match="`size`: expected 'light' or 'paper', but got 'huge'"):
        preset(size="huge")


def test_every_loss_has_the_published_weight():
    features = {"text_features": 0.5, "image_features": 0.5}
    assert methods.umd().weights == {"matching": 1, "words": 0.5, "patches": 0.5, **features}
    assert methods.m3ae().weights == {"matching": 1, "words": 1, "patches": 1}
    assert methods.adaptor().weights == {"contrastive": 1, "matching": 0.3}
    assert methods.adaptor(faithful=True).weights == {"contrastive": 1}
    assert methods.umd(size="paper").weights == methods.umd().weights


def test_the_papers_numbers():
    for method in (methods.m3ae(size="paper"), methods.umd(size="paper")):
        fusion = method.fusion
        assert (fusion.kind, fusion.width, fusion.layers, fusion.heads, fusion.dropout) == ("co", 768, 6, 12, 0.1)
        assert (method.schedule.batch_size, method.schedule.learning_rate) == (256, 5e-5)
        assert (method.schedule.weight_decay, method.schedule.warmup_share) == (0.01, 0.1)
        words, patches = method.term("words"), method.term("patches")
        assert (words.share, words.tied, patches.ratio) == (0.15, False, 0.75)
        assert (patches.decoder_width, patches.decoder_blocks, patches.decoder_heads) == (384, 4, 6)
    assert methods.m3ae(size="paper").term("patches").layer == 3
    assert methods.umd(size="paper").term("patches").layer is None
    assert methods.m3ae().teacher_decay is None
    assert methods.umd().teacher_decay == 0.995
    released = methods.adaptor(faithful=True)
    assert (released.fusion.width, released.fusion.heads, released.fusion.faithful) == (768, 12, True)
    assert (released.schedule.batch_size, released.schedule.learning_rate) == (1024, 2e-5)


def test_methods_are_compared_by_value_and_cannot_be_changed():
    assert methods.umd() == methods.umd() != methods.umd(faithful=True)
    with pytest.raises(AttributeError, match="cannot assign to field 'fusion'"):
        methods.umd().fusion = None
