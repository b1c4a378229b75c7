"""Choices about a method: its settings as JSON values, read back, changed one by one, and checked by name and type."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.settings import FusionSettings
from adaptmed.pretraining.flat import with_terms
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.terms import TERMS
from adaptmed.runs.settings import build_settings, check_names
from adaptmed.training.settings import Schedule

Changes = Mapping[str, Mapping[str, Any]]
"""Changed settings by part (``fusion``, ``schedule`` or the name of a term) and field."""
_METHOD = ("name", "size", "fusion", "terms", "schedule")
_FIX = "`adaptmed pretrain --method umd --show` lists all settings."


def to_json(method: Method) -> dict[str, Any]:
    """Return a method as a run's configuration holds it.

    Example:
        >>> from adaptmed import methods
        >>> from_json(to_json(methods.umd())) == methods.umd()
        True
    """
    return {
        "name": method.name,
        "size": method.size,
        "fusion": asdict(method.fusion),
        "terms": {term.name: asdict(term) for term in method.terms},
        "schedule": asdict(method.schedule),
    }


def from_json(found: Any) -> Method:
    """Build a method from what :func:`to_json` and a JSON file made of it, today or before there were terms.

    Raises:
        InputError: A field is unknown, missing, or of another type or range.
    """
    if not isinstance(found, Mapping):
        fix = "`adaptmed pretrain --method umd --show` prints one."
        raise InputError(sentence("method", expected="the fields of a method", got=repr(found), fix=fix))
    nested = with_terms(found)
    check_names("method", nested, _METHOD)
    missing = [name for name in _METHOD if name not in nested]
    if missing:
        fix = "Use the version of adaptmed that wrote it, or pre-train again."
        raise InputError(sentence("method", expected="the fields of a method", got=f"none for {missing[0]}", fix=fix))
    for part in ("fusion", "terms", "schedule"):
        if not isinstance(nested[part], Mapping):
            fix = "Use the version of adaptmed that wrote it, or pre-train again."
            got = repr(nested[part])
            raise InputError(sentence(f"method.{part}", expected="names with their values", got=got, fix=fix))
    check_names("method.terms", nested["terms"], tuple(TERMS))
    return Method(
        name=nested["name"],
        size=nested["size"],
        fusion=build_settings(FusionSettings, "fusion", nested["fusion"]),
        # In the order of TERMS: the same terms draw the same numbers, however they were named.
        terms=tuple(
            build_settings(TERMS[name], name, nested["terms"][name]) for name in TERMS if name in nested["terms"]
        ),
        schedule=build_settings(Schedule, "schedule", nested["schedule"]),
    )


def changed(method: Method, changes: Changes) -> Method:
    """Return a method with other settings.

    A term that the method lacks is added by giving its weight; a weight of 0 leaves a term out.

    Args:
        method: It stays as it is.
        changes: By part and field: ``{"words": {"share": 0.2}, "fusion": {"width": 128}}``.

    Raises:
        InputError: A part or field is unknown (the nearest name is told), or a value is of another type or range.

    Example:
        >>> from adaptmed import methods
        >>> changed(methods.umd(), {"words": {"share": 0.2}, "text_features": {"weight": 0.0}}).weights
        {'matching': 1.0, 'words': 0.5, 'patches': 0.5, 'image_features': 0.5}
    """
    parts: dict[str, type[Any]] = {"fusion": FusionSettings, **TERMS, "schedule": Schedule}
    found = to_json(method)
    for part, values in changes.items():
        check_names("set", [part], tuple(parts), fix=_FIX)
        check_names(part, values, tuple(field.name for field in fields(parts[part])), fix=_FIX)
        held = found if part in ("fusion", "schedule") else found["terms"]
        if part not in held and "weight" not in values:
            expected, fix = f"a term of the method {method.name}", f"Add it with {part}.weight=1."
            raise InputError(sentence(part, expected=expected, got="one it has not", fix=fix))
        held[part] = {**held.get(part, {}), **values}
    return from_json(found)


def parse_changes(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read ``part.field=value`` words.

    Args:
        words: As on the command line; a value is a JSON value or a bare word; ``none`` empties a setting
            that may be empty.

    Raises:
        InputError: A word has another form.

    Example:
        >>> parse_changes(["words.share=0.2", "patches.layer=none"])
        {'words': {'share': 0.2}, 'patches': {'layer': 'none'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        path, equals, value = word.partition("=")
        part, dot, name = path.partition(".")
        if not (equals and dot and part and name):
            raise InputError(
                sentence("set", expected="part.field=value, for example words.share=0.2", got=word, fix=_FIX)
            )
        found.setdefault(part.strip(), {})[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
