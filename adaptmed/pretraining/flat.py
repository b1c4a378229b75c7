"""Older form of a method in a run's configuration: all settings side by side, before there were terms."""

from collections.abc import Mapping
from typing import Any

from adaptmed.errors import InputError, sentence

_FUSION = ("width", "layers", "heads", "dropout", "faithful")
_PAIRS = {
    "contrastive": {
        "weight": "weight_contrastive",
        "image_to_text": "weight_image_to_text",
        "token_dropout": "token_dropout",
        "positives": "positives",
    },
    "matching": {
        "weight": "weight_matching",
        "share": "matching_share",
        "negatives": "negatives",
        "by_label": "negatives_by_label",
    },
}
_MASKED = {
    "words": {"weight": "weight_words", "share": "word_share", "whole": "whole_words", "tied": "tied_words"},
    "patches": {
        "weight": "weight_patches",
        "ratio": "patch_ratio",
        "layer": "patch_layer",
        "decoder_width": "decoder_width",
        "decoder_blocks": "decoder_blocks",
        "decoder_heads": "decoder_heads",
    },
    "image_features": {
        "weight": "weight_image_features",
        "teacher_decay": "teacher_decay",
        "faithful": "faithful",
    },
    "text_features": {"weight": "weight_text_features", "teacher_decay": "teacher_decay", "faithful": "faithful"},
}
_ABOVE = {"name", "size", "fusion", "masking", "schedule", *_FUSION} | {
    old for fields in _PAIRS.values() for old in fields.values()
}
_INSIDE = {"joint"} | {old for fields in _MASKED.values() for old in fields.values()}


def with_terms(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a method as JSON with terms; one that has them already comes back as it is.

    Runs that were started before there were terms go on: a weight of 0 left an objective out, and so does its absence.

    Args:
        found: What a run's configuration holds under ``method``.

    Raises:
        InputError: A field is unknown or missing.
    """
    if "terms" in found:
        return found
    masking = found.get("masking")
    _check("method", found, _ABOVE)
    _check("method.masking", masking or dict.fromkeys(_INSIDE), _INSIDE)
    terms = {term: {new: found[old] for new, old in fields.items()} for term, fields in _PAIRS.items()}
    if masking is not None:
        terms |= {term: {new: masking[old] for new, old in fields.items()} for term, fields in _MASKED.items()}
        for term in ("words", "patches"):
            terms[term]["beside"] = "hidden" if masking["joint"] else "whole"
    return {
        "name": found["name"],
        "size": found["size"],
        "fusion": {"kind": found["fusion"], **{name: found[name] for name in _FUSION}},
        "terms": {term: fields for term, fields in terms.items() if fields["weight"] > 0},
        "schedule": found["schedule"],
    }


def _check(name: str, found: Mapping[str, Any], known: set[str]) -> None:
    other = sorted(found.keys() ^ known)
    if other:
        fix = "Use the version of adaptmed that wrote it, or pre-train again."
        raise InputError(sentence(name, expected="the fields of a method", got=", ".join(other), fix=fix))
