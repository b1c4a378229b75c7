"""Configurations of every kind of fusion: through JSON and back, closed, and shaped for two encoders."""

import json

import pytest

from adaptmed.errors import InputError
from adaptmed.fusion import CoConfig, CrossConfig
from adaptmed.fusion.config import CONFIGS, from_json, fusion_config, to_json

EVERY = [
    CrossConfig(image_width=6, text_width=5, width=8, heads=2, image_grid=(3, 4), image_prefix=0),
    CrossConfig.released(512),
    CoConfig(image_width=6, text_width=5, width=8, heads=2, layers=3, dropout=0.0, image_prefix=5),
    CoConfig.paper(),
    CrossConfig(image_width=6, text_width=None, width=8, heads=2),
    CoConfig(image_width=6, text_width=None),
]


@pytest.mark.parametrize("config", EVERY, ids=range(len(EVERY)))
def test_a_configuration_survives_json(config):
    found = json.loads(json.dumps(to_json(config)))
    assert found["kind"] == config.kind
    assert from_json(found) == config


def test_every_kind_is_tested():
    assert {type(config) for config in EVERY} == set(CONFIGS.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_fields_types_and_ranges_are_refused(kind):
    found = to_json(CONFIGS[kind](image_width=6, text_width=5))
    with pytest.raises(InputError, match=r"missing \[\], unknown \['depth'\]"):
        from_json(found | {"depth": 1})
    with pytest.raises(InputError, match=r"missing \['heads'\], unknown \[\]"):
        from_json({name: value for name, value in found.items() if name != "heads"})
    for name, value in (("layers", 2.0), ("layers", True), ("width", "8"), ("dropout", None), ("image_prefix", [1])):
        with pytest.raises(InputError, match=rf"`fusion\.{name}`: expected a (whole )?number, but got"):
            from_json(found | {name: value})
    with pytest.raises(InputError, match=r"`fusion\.text_width`: expected a whole number or null, but got '5'"):
        from_json(found | {"text_width": "5"})
    with pytest.raises(InputError, match=r"`fusion\.image_width`: expected a whole number, but got None"):
        from_json(found | {"image_width": None})
    with pytest.raises(InputError, match="`text_width`: expected a whole number of at least 1, but got 0"):
        from_json(found | {"text_width": 0})
    with pytest.raises(InputError, match="`heads`: expected a divisor of width=256, but got 3"):
        from_json(found | {"heads": 3})
    with pytest.raises(InputError, match="`layers`: expected a whole number of at least 1, but got 0"):
        from_json(found | {"layers": 0})


@pytest.mark.parametrize("kind", ["magic", None, ["co"]])
def test_another_kind_is_refused(kind):
    with pytest.raises(InputError, match=r"`fusion\.kind`: expected one of cross, co, but got"):
        from_json({"kind": kind})


def test_a_fusion_is_shaped_for_its_encoders():
    place = {"grid": (5, 7, 9), "prefix": 2}
    cross = fusion_config("cross", (6, 5), **place, width=8, heads=2, layers=None)
    assert cross == CrossConfig(image_width=6, text_width=5, width=8, heads=2, image_grid=(7, 9), image_prefix=2)
    co = fusion_config("co", (6, 5), **place, dropout=0.3, layers=4)
    assert co == CoConfig(image_width=6, text_width=5, dropout=0.3, layers=4, image_prefix=2)
    assert fusion_config("cross", (6, 5), **place, faithful=True, width=8) == CrossConfig.released(6, 5)
    with pytest.raises(InputError, match="`faithful`: expected False with fusion='co', but got True"):
        fusion_config("co", (6, 5), **place, faithful=True)


@pytest.mark.parametrize("kind", CONFIGS)
def test_images_alone_have_no_width_of_texts(kind):
    config = fusion_config(kind, (6, None), grid=(3, 4), prefix=1, width=8, heads=2)
    assert (config.text_width, json.loads(json.dumps(to_json(config)))["text_width"]) == (None, None)


def test_images_alone_have_no_released_arrangement():
    with pytest.raises(InputError, match="`text_width`: expected a width: the released arrangement fuses pairs, but"):
        fusion_config("cross", (6, None), grid=(3, 4), prefix=1, faithful=True)
