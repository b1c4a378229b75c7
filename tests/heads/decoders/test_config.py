import json
import re
from dataclasses import fields, replace

import pytest

import adaptmed.heads.decoders as room
from adaptmed.errors import InputError
from adaptmed.heads.decoders import DptConfig, ImageConcatConfig, UnetrConfig, build_decoder, from_json, to_json
from adaptmed.heads.decoders.config import CONFIGS


def default(kind, spatial_dims=2):
    return CONFIGS[kind](widths=(256,) * (1 if kind == "image-concat" else 4), classes=1, spatial_dims=spatial_dims)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_survives_json(kind):
    config = replace(default(kind, 3), classes=5, channels=8)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_fields_and_types_are_refused(kind):
    found = to_json(default(kind))
    with pytest.raises(InputError, match=r"missing \[\], unknown \['depth'\]"):
        from_json(found | {"depth": 1})
    with pytest.raises(InputError, match=r"missing \['classes'\], unknown \[\]"):
        from_json({name: value for name, value in found.items() if name != "classes"})
    for name, value in (("classes", 2.0), ("classes", True), ("classes", [1]), ("widths", 8), ("widths", [8, "8"])):
        with pytest.raises(InputError, match=rf"`decoder\.{name}`: expected (a )?whole numbers?, but got"):
            from_json(found | {name: value})


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="one of image-concat, dpt, unetr, unet, but got 'segformer'"):
        from_json({"kind": "segformer"})
    with pytest.raises(InputError, match="but got None"):
        from_json({})


def test_impossible_shapes_are_refused():
    with pytest.raises(InputError, match="expected one map, the fused grid, but got 2 maps"):
        ImageConcatConfig(widths=(8, 8), classes=1)
    with pytest.raises(InputError, match=r"at least two maps, shallow to deep, but got 1\. .*--taps 4"):
        DptConfig(widths=(8,), classes=1)
    with pytest.raises(InputError, match="a multiple of 4, but got 6"):
        DptConfig(widths=(8, 8), classes=1, channels=6)
    with pytest.raises(InputError, match=r"2 \(images\) or 3 \(volumes\), but got 1"):
        DptConfig(widths=(8, 8), classes=1, spatial_dims=1)
    with pytest.raises(InputError, match=r"`widths\[1\]`: .* at least 1, but got 0"):
        UnetrConfig(widths=(8, 0), classes=1)
    with pytest.raises(InputError, match=r"`classes`: .* but got 0"):
        UnetrConfig(widths=(8, 8), classes=0)
    with pytest.raises(InputError, match=r"`image_channels`: .* but got 0"):
        UnetrConfig(widths=(8, 8), classes=1, image_channels=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_are_plain_values(kind):
    assert {field.type for field in fields(CONFIGS[kind])} == {int, tuple[int, ...]}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_table_tells_the_number_of_parameters(kind, spatial_dims):
    row = next(line for line in room.__doc__.splitlines() if line.startswith(f"| ``{kind}``"))
    said = float(re.findall(r"([\d.]+) M", row)[spatial_dims - 2])
    count = sum(parameter.numel() for parameter in build_decoder(default(kind, spatial_dims)).parameters())
    assert count / 1e6 == pytest.approx(said, abs=0.005)
