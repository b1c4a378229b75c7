"""Settings of methods: changed by name, refused with the nearest name, and read from runs before there were terms."""

import json
from dataclasses import fields, replace

import pytest

from adaptmed import methods
from adaptmed.errors import InputError
from adaptmed.fusion.settings import FusionSettings
from adaptmed.methods import Schedule, changed, from_json, to_json
from adaptmed.pretraining.choices import parse_changes
from adaptmed.pretraining.terms import TERMS

FLAT = {
    "name": "umd",
    "size": "light",
    "fusion": "co",
    "width": 256,
    "layers": 6,
    "heads": 4,
    "dropout": 0.0,
    "token_dropout": 0.0,
    "faithful": False,
    "weight_contrastive": 0.0,
    "weight_image_to_text": 0.25,
    "weight_matching": 1.0,
    "matching_share": 1.0,
    "negatives": "random",
    "negatives_by_label": False,
    "masking": {
        "joint": True,
        "word_share": 0.15,
        "whole_words": True,
        "patch_ratio": 0.75,
        "patch_layer": None,
        "decoder_width": 192,
        "decoder_blocks": 4,
        "decoder_heads": 6,
        "tied_words": True,
        "weight_words": 0.5,
        "weight_patches": 0.5,
        "weight_text_features": 0.5,
        "weight_image_features": 0.5,
        "teacher_decay": 0.995,
        "faithful": False,
    },
    "positives": "pair",
}


def flat(**change):
    return {**FLAT, "schedule": to_json(methods.umd())["schedule"], **change}


def test_a_method_of_a_run_before_there_were_terms_is_read():
    assert from_json(flat()) == methods.umd()
    separate = {**FLAT["masking"], "joint": False, "weight_text_features": 0.0, "weight_image_features": 0.0}
    found = from_json(flat(name="m3ae", masking={**separate, "patch_layer": 3, "weight_words": 1.0}))
    assert found == changed(methods.m3ae(), {"patches": {"weight": 0.5}})
    plain = {"fusion": "cross", "layers": 2, "weight_contrastive": 1.0, "masking": None, "name": "adaptor"}
    adaptor = from_json(flat(**plain, token_dropout=0.25, positives="identical-text", weight_matching=0.3))
    assert adaptor.weights == methods.adaptor().weights
    assert adaptor.term("contrastive") == methods.adaptor().term("contrastive")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 1.0}, "`method`: expected the fields of a method, but got temperature. Use the version"),
        ({"masking": {**FLAT["masking"], "blocks": 3}}, "`method.masking`: .*but got blocks"),
        ({"schedule": {"momentum": 0.9}}, "`schedule`: expected one of epochs, .*, but got momentum"),
        ({"schedule": None}, "`method.schedule`: expected names with their values, but got None"),
    ],
)
def test_an_unknown_field_of_an_old_run_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        from_json(flat(**change))


def test_a_method_without_one_of_its_parts_is_refused():
    found = to_json(methods.umd())
    del found["schedule"]
    with pytest.raises(InputError, match="the fields of a method, but got none for schedule"):
        from_json(found)


def test_one_value_is_changed_and_all_else_stays():
    before, after = to_json(methods.umd()), to_json(changed(methods.umd(), {"words": {"share": 0.2}}))
    assert after["terms"]["words"].pop("share") == 0.2
    assert before["terms"]["words"].pop("share") == 0.15
    assert before == after


def test_a_term_is_left_out_and_added_by_its_weight():
    bare = changed(methods.umd(), {"image_features": {"weight": 0}, "text_features": {"weight": 0.0}})
    assert bare.teacher_decay is None
    both = changed(methods.m3ae(), {"contrastive": {"weight": 1, "token_dropout": 0.5}})
    assert list(both.weights) == ["contrastive", "matching", "words", "patches"]
    assert both.term("contrastive") == TERMS["contrastive"](token_dropout=0.5)
    with pytest.raises(InputError, match=r"`contrastive`: expected a term of the method m3ae, .*contrastive\.weight=1"):
        changed(methods.m3ae(), {"contrastive": {"token_dropout": 0.5}})


def test_words_become_values():
    words = ["words.share=0.2", "patches.layer=none", "words.tied=false", "contrastive.positives=pair"]
    words += ["schedule.epochs=3", "schedule.learning_rate=1e-4"]
    assert parse_changes(words) == {
        "words": {"share": 0.2, "tied": False},
        "patches": {"layer": "none"},
        "contrastive": {"positives": "pair"},
        "schedule": {"epochs": 3, "learning_rate": 1e-4},
    }


def test_none_is_a_word_where_there_is_one_and_else_empties_a_setting():
    found = changed(methods.m3ae(), parse_changes(["patches.layer=none", "patches.beside=none"])).term("patches")
    assert (found.layer, found.beside) == (None, "none")
    with pytest.raises(InputError, match=r"`words\.share`: expected a number, but got 'none'"):
        changed(methods.m3ae(), parse_changes(["words.share=none"]))


@pytest.mark.parametrize("word", ["words", "words.share", "words=0.2", ".share=2", "words.=2", "=2", ""])
def test_words_of_another_form_are_refused(word):
    with pytest.raises(InputError, match=r"`set`: expected part.field=value, for example words.share=0.2, but got"):
        parse_changes([word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("wrods.share=0.2", r"`set`: expected one of fusion, contrastive, .*, but got wrods. Did you mean words\?"),
        ("zzz.share=0.2", r"`set`: .*but got zzz. `adaptmed pretrain --method umd --show` lists all settings"),
        ("words.shaer=0.2", r"`words`: expected one of weight, share, .*, but got shaer. Did you mean share\?"),
        ("words.share=much", "`words.share`: expected a number, but got 'much'"),
        ("words.share=true", "`words.share`: expected a number, but got True"),
        ("words.whole=1", "`words.whole`: expected true or false, but got 1"),
        ("patches.layer=2.5", "`patches.layer`: expected a whole number or none, but got 2.5"),
        ("matching.negatives=easy", "`matching.negatives`: expected random, hard, but got 'easy'"),
        ("fusion.kind=crosss", "`fusion`: expected one of cross, co, but got 'crosss'"),
        ("words.share=1.0", "`words.share`: expected a share above 0 and below 1, but got 1.0"),
        ("words.weight=-1", "`words.weight`: expected 0 or more"),
        ("schedule.epochs=0", "`epochs`: expected at least 1"),
    ],
)
def test_what_a_method_has_not_is_refused(word, message):
    with pytest.raises(InputError, match=message):
        changed(methods.umd(), parse_changes([word]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": {"kind": "cross"}}, "`fusion.kind`: expected a fusion with a stream for each side, as words reads"),
        ({"fusion": {"layers": 2}}, r"`patches.layer`: expected a layer from 0 to 2, but got 3. Leave it out"),
        ({"words": {"weight": 0.0}, "patches": {"beside": "hidden"}}, "`patches.beside`: .*hides parts of the text"),
        ({"patches": {"weight": 0.0}, "words": {"beside": "hidden"}}, "`words.beside`: .*hides parts of the image"),
        ({"image_features": {"weight": 0.5}}, "`patches.beside`: expected 'hidden', as image_features compares"),
        ({"text_features": {"weight": 0.5}}, "`words.beside`: expected 'hidden', as text_features compares"),
        ({name: {"weight": 0.0} for name in ("matching", "words", "patches")}, "`terms`: expected at least one term"),
    ],
)
def test_terms_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        changed(methods.m3ae(), change)


def test_one_teacher_has_one_decay():
    with pytest.raises(InputError, match=r"`teacher_decay`: expected one decay, but got \['0.9', '0.995'\]"):
        changed(methods.umd(), {"text_features": {"teacher_decay": 0.9}})
    without = {"words": {"weight": 0.0}, "patches": {"beside": "whole"}, "image_features": {"weight": 0.0}}
    with pytest.raises(InputError, match="`text_features`: expected words beside text_features, but got a method with"):
        changed(methods.umd(), without)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *[
            (n, {f: bad}, f"`{n}.{f}`: expected a share")
            for n, f, bad in [("words", "share", 0.0), ("patches", "ratio", 1.0)]
        ],
        ("patches", {"ratio": float("nan")}, "`patches.ratio`: expected a share above 0 and below 1, but got nan"),
        ("patches", {"decoder_blocks": 0}, "`patches.decoder_blocks`: expected at least 1"),
        ("matching", {"share": 1.1}, r"`matching.share`: expected a share in \[0, 1\]"),
        ("contrastive", {"image_to_text": -0.1}, "`contrastive.image_to_text`: expected a share"),
        ("contrastive", {"token_dropout": 1.0}, r"`contrastive.token_dropout`: expected a share in \[0, 1\)"),
        ("text_features", {"teacher_decay": 1.0}, r"`text_features.teacher_decay`: expected a decay in \[0, 1\)"),
        ("image_features", {"teacher_decay": -0.1}, "`image_features.teacher_decay`: expected a decay"),
    ],
)
def test_terms_out_of_range_are_refused(name, change, message):
    with pytest.raises(InputError, match=message):
        TERMS[name](**change)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_every_term_refuses_a_weight_out_of_range(name, bad):
    with pytest.raises(InputError, match=f"`{name}.weight`: expected 0 or more"):
        TERMS[name](weight=bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "`heads`: expected a divisor of width=256, but got 3"),
        ({"width": 0}, "`width`: expected at least 1"),
        ({"dropout": 1.0}, r"`dropout`: expected a share in \[0, 1\)"),
        ({"kind": "co", "faithful": True}, "`faithful`: expected False with fusion='co'"),
    ],
)
def test_fusions_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        FusionSettings(**change)


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


def test_every_setting_of_every_part_survives_json():
    """A field that the JSON loses would change a run that is repeated from its configuration."""
    method = methods.umd()
    for term in method.terms:
        for field in fields(term):
            found = json.loads(json.dumps(to_json(method)))["terms"][term.name]
            assert found[field.name] == getattr(term, field.name)
    assert from_json(to_json(replace(method, name="other"))).name == "other"
