"""What one shard states of itself, in the json beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adaptmed.bank.files import other_form, read_json


@dataclass(frozen=True)
class StoredTap:
    """A feature map that is stored of every picture or slice: its channels, and its grid ``(height, width)``."""

    width: int
    grid: tuple[int, int]

    @classmethod
    def all_of(cls, facts: Iterable[Mapping[str, Any]]) -> tuple[Self, ...]:
        """Build from plain json values."""
        return tuple(cls(tap["width"], tuple(tap["grid"])) for tap in facts)


def tap_names(count: int) -> list[str]:
    """Return the names that stored taps have in a shard, shallow to deep."""
    return [f"tap{number}" for number in range(count)]


@dataclass(frozen=True)
class Shard:
    """One whole shard, as its own json states it.

    Attributes:
        file: Path inside the bank, without the ending.
        count: Pictures, slices or texts in it.
        width: Of their tokens; 0 in a shard whose images were all rejected.
        size_bytes: Of the safetensors file.
        sha256: Of the safetensors file.
        grid: Of image Tokens; ``None`` for text and for a shard whose images were all rejected.
        prefix: Leading tokens outside the grid.
        truncated: Texts that lost their end.
        rejects: ``(number of the distinct image, reason)`` of those left out.
        slices: How many of each volume in it; empty for pictures and texts.
        taps: Of images, shallow to deep; empty without and where all images were rejected.
    """

    file: str = ""
    count: int = 0
    width: int = 0
    size_bytes: int = 0
    sha256: str = ""
    grid: tuple[int, ...] | None = None
    prefix: int = 0
    truncated: int = 0
    rejects: tuple[tuple[int, str], ...] = ()
    slices: tuple[int, ...] = ()
    taps: tuple[StoredTap, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the json beside a shard.

        Raises:
            BankError: It is missing, cut or of another form.
        """
        facts = read_json(path)
        try:
            return cls.from_dict(facts)
        except (KeyError, TypeError, ValueError) as error:
            raise other_form(path, "the facts of a shard", error) from error

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Build from plain json values."""
        grid, rejects = facts["grid"], facts["rejects"]
        tuples = {"grid": None if grid is None else tuple(grid), "rejects": tuple((n, why) for n, why in rejects)}
        later = {"slices": tuple(facts.get("slices", ())), "taps": StoredTap.all_of(facts.get("taps", ()))}
        return cls(**{**facts, **tuples, **later})
