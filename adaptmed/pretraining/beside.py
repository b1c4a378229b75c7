"""Checks of a term against its method: what the fusion can show it, and what stands beside it."""

from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.views import Hidden
from adaptmed.types import Side

_HIDING = {"image": "patches", "text": "words"}


def require_streams(method: Method, term: str) -> None:
    """Refuse a fusion whose tokens cannot be read after a layer.

    Raises:
        InputError: If so.
    """
    if not method.fusion.has_streams:
        expected, got = f"a fusion with a stream for each side, as {term} reads one", repr(method.fusion.kind)
        fix = f"Choose fusion.kind=co, or leave the term out with {term}.weight=0."
        raise InputError(sentence("fusion.kind", expected=expected, got=got, fix=fix))


def hidden_beside(method: Method, term: str, side: Side) -> Hidden:
    """Return what another term hides of a side, for a term that reads its own side beside it.

    Raises:
        InputError: If no term hides anything of that side.
    """
    hidden = method.hiding(side)
    if hidden is None:
        expected = f"a term that hides parts of the {side}, as {term} is to stand beside them"
        fix = f"Give {_HIDING[side]}.weight a value above 0, or pass {term}.beside=whole."
        raise InputError(sentence(f"{term}.beside", expected=expected, got="none", fix=fix))
    return hidden


def require_term(method: Method, term: str, *, needed: str) -> Any:
    """Return the settings of a term that another one stands on, in the pass that both sides are hidden in.

    Raises:
        InputError: If the method lacks it, or it reads a side whole.
    """
    other = method.term(needed)
    if other is None:
        expected, fix = f"{needed} beside {term}", f"Give {needed}.weight a value above 0, or {term}.weight=0."
        raise InputError(sentence(term, expected=expected, got="a method without it", fix=fix))
    [view] = other.needs(method).views
    if not (isinstance(view.image, Hidden) and isinstance(view.text, Hidden)):
        expected, got = f"'hidden', as {term} compares with a teacher that sees more on both sides", "another"
        fix = f"Pass {needed}.beside=hidden, or {term}.weight=0."
        raise InputError(sentence(f"{needed}.beside", expected=expected, got=got, fix=fix))
    return other
