"""What the values of masks are called, and their order as classes of a decoder."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64, Integer

from adaptmed.errors import InputError, sentence

BACKGROUND = "background"
HIGHEST = 65535
_SHOWN = 8


def parse_labels(words: Sequence[str]) -> dict[int, str]:
    """Read names of mask values as the command line takes them: ``1=effusion 3=nodule``.

    Args:
        words: ``value=name`` each. 0 is background, and need not be named.

    Returns:
        Value → name, sorted by value, 0 first.

    Raises:
        InputError: A word of another form, a value that is not from 0 to 65535, a value or name twice, or no value
            above 0.

    Example:
        >>> parse_labels(["3=nodule", "1=effusion"])
        {0: 'background', 1: 'effusion', 3: 'nodule'}
    """
    labels: dict[int, str] = {}
    for word in words:
        value, _, name = (part.strip() for part in word.partition("="))
        if not (value.isascii() and value.isdecimal() and int(value) <= HIGHEST and name):
            raise _bad_labels(f"value=name with a value from 0 to {HIGHEST}", repr(word))
        if int(value) in labels or name in labels.values():
            raise _bad_labels("every value and every name once", f"{word!r} again")
        labels[int(value)] = name
    labels.setdefault(0, BACKGROUND)
    if len(labels) == 1:
        raise _bad_labels("a value above 0", "none")
    return dict(sorted(labels.items()))


def labels_of(values: Iterable[int]) -> dict[int, str]:
    """Name the values that were found in masks where nobody has: ``label 1``, ``label 2`` and so on.

    Args:
        values: All that stand in the masks of a training set.

    Raises:
        InputError: There is nothing but background: no decoder can learn from it.

    Example:
        >>> labels_of({0, 4, 2})
        {0: 'background', 2: 'label 2', 4: 'label 4'}
    """
    found = sorted(set(values) - {0})
    if not found:
        fix = "Check that `mask` names the right files, or take more patients."
        raise InputError(sentence("mask", expected="a mask that is not empty", got="only background", fix=fix))
    return {0: BACKGROUND, **{value: f"label {value}" for value in found}}


def as_classes(
    values: Integer[np.ndarray, "*shape"], labels: Mapping[int, str], *, name: str = "mask"
) -> Int64[np.ndarray, "*shape"]:
    """Number the labels of a mask from 0 without gaps, in order of their values.

    Args:
        values: Labels as in the file.
        labels: As ``parse_labels`` or ``labels_of`` give them.
        name: Of the mask, for the message.

    Raises:
        InputError: A value is not among the labels.

    Example:
        >>> as_classes(np.array([0, 4, 2]), {0: "background", 2: "label 2", 4: "label 4"}).tolist()
        [0, 2, 1]
    """
    refuse_other_values(name, values_in(values), labels)
    return np.searchsorted(_known(labels), values).astype(np.int64)


def as_values(classes: Integer[np.ndarray, "*shape"], labels: Mapping[int, str]) -> Int64[np.ndarray, "*shape"]:
    """Give every class its value in the files again: the inverse of ``as_classes``.

    Example:
        >>> as_values(np.array([0, 2, 1]), {0: "background", 2: "label 2", 4: "label 4"}).tolist()
        [0, 4, 2]
    """
    return np.array(_known(labels), dtype=np.int64)[classes]


def values_in(values: Integer[np.ndarray, "*shape"]) -> tuple[int, ...]:
    """Return the distinct values of a mask in order; none is below 0.

    Example:
        >>> values_in(np.array([[7, 0], [0, 2]]))
        (0, 2, 7)
    """
    return tuple(np.flatnonzero(np.bincount(values.ravel())).tolist())


def refuse_other_values(name: str, found: Iterable[int], labels: Mapping[int, str]) -> None:
    """Raise ``InputError`` when a mask holds values that are neither background nor among the labels."""
    other = sorted(set(found) - {0, *labels})
    if other:
        shown = ", ".join(map(str, other[:_SHOWN])) + (f" and {len(other) - _SHOWN} more" if other[_SHOWN:] else "")
        expected = f"values among {', '.join(map(str, _known(labels)))}"
        fix = "Name them with --mask-labels, or mend the mask."
        raise InputError(sentence(name, expected=expected, got=shown, fix=fix))


def _known(labels: Mapping[int, str]) -> list[int]:
    return sorted({0, *labels})


def _bad_labels(expected: str, got: str) -> InputError:
    fix = "Pass for example 1=effusion 2=nodule."
    return InputError(sentence("mask_labels", expected=expected, got=got, fix=fix))
