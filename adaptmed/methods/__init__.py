"""Published methods as presets: a fusion, terms and a schedule, one file each."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.settings import FusionSettings
from adaptmed.methods.adaptor import adaptor
from adaptmed.methods.m3ae import m3ae
from adaptmed.methods.umd import umd
from adaptmed.pretraining.choices import changed, from_json, to_json
from adaptmed.pretraining.method import Method
from adaptmed.training.settings import Schedule

PRESETS: Mapping[str, Callable[..., Method]] = {preset.__name__: preset for preset in (adaptor, m3ae, umd)}
"""Name of a method → its preset."""

__all__ = [
    "PRESETS",
    "FusionSettings",
    "Method",
    "Schedule",
    "adaptor",
    "changed",
    "from_json",
    "m3ae",
    "preset_of",
    "to_json",
    "umd",
]


def preset_of(name: str, **options: Any) -> Method:
    """Build a preset by its name.

    Args:
        name: One of ``PRESETS``.
        options: ``size``, and ``faithful`` where the preset has an arrangement of its released code.

    Raises:
        InputError: There is no such preset, or it lacks an option.

    Example:
        >>> preset_of("umd", size="paper").fusion.width
        768
    """
    if name not in PRESETS:
        near = ", ".join(PRESETS)
        raise InputError(sentence("method", expected=f"one of {near}", got=name, fix="Check the spelling."))
    having = {other: inspect.signature(preset).parameters for other, preset in PRESETS.items()}
    for option in options:
        if option not in having[name]:
            expected = f"a method that has this option ({', '.join(n for n, has in having.items() if option in has)})"
            fix = f"Leave --{option} out, or choose another --method."
            raise InputError(sentence(option, expected=expected, got=f"--method {name}", fix=fix))
    return PRESETS[name](**options)
