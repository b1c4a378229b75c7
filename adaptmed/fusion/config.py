"""What a fusion is made of, as plain values that a JSON file can hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from adaptmed.errors import InputError, sentence

MAX_LOG_SCALE = math.log(100.0)
"""The factor on cosine similarities never exceeds 100; training keeps its logarithm below this."""
_KINDS: Mapping[object, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
}


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """The shape of a ``cross`` fusion.

    Attributes:
        image_width: Width of the image encoder's tokens.
        text_width: Width of the text encoder's tokens.
        width: Width of the fusion and of both embeddings.
        layers: Number of layers, each shared between the modalities.
        heads: Attention heads; must divide ``width``.
        dropout: Dropout inside the layers during training, in [0, 1).
        image_grid: Grid at which image positions are learned; other grids are interpolated.
        image_prefix: Image tokens outside the grid (CLS, registers).
        faithful: Build the arrangement of the paper's released code instead (see ``ReleasedCrossFusion``).
    """

    image_width: int
    text_width: int
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    image_grid: tuple[int, int] = (8, 8)
    image_prefix: int = 1
    faithful: bool = False

    def __post_init__(self) -> None:
        for name in ("image_width", "text_width", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(
                    sentence(name, expected="a whole number of at least 1", got=getattr(self, name), fix="Raise it.")
                )
        if self.width % self.heads:
            raise InputError(
                sentence(
                    "heads",
                    expected=f"a divisor of width={self.width}",
                    got=self.heads,
                    fix="Choose another width or number of heads.",
                )
            )
        if not 0 <= self.dropout < 1:
            raise InputError(sentence("dropout", expected="a share in [0, 1)", got=self.dropout, fix="Try 0.1."))

    @classmethod
    def released(cls, image_width: int, text_width: int = 768) -> Self:
        """The sizes of the paper's released code: width 768, two layers, twelve heads."""
        return cls(
            image_width=image_width, text_width=text_width, width=768, layers=2, heads=12, dropout=0.1, faithful=True
        )

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Rebuild a configuration from its ``kind`` and what ``dataclasses.asdict`` and JSON made of its fields.

        Raises:
            InputError: If the kind is another one, or a field is missing, unknown or of another type.
        """
        if found.get("kind") != "cross":
            fix = "Read it with the version that wrote it."
            raise InputError(sentence("fusion.kind", expected="'cross'", got=repr(found.get("kind")), fix=fix))
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        del values["kind"]
        known = {field.name: field.type for field in fields(cls)}
        if set(values) != set(known):
            expected = f"exactly the fields {', '.join(sorted(known))}"
            got = f"missing {sorted(set(known) - set(values))}, unknown {sorted(set(values) - set(known))}"
            fix = "Save the adaptor again with this version."
            raise InputError(sentence("fusion", expected=expected, got=got, fix=fix))
        for name, kind in known.items():
            _check_kind(f"fusion.{name}", values[name], kind)
        return cls(**values)


def _check_kind(name: str, value: object, kind: object) -> None:
    """Refuse what a JSON file holds in place of a number, a switch or a grid."""
    expected, types = _KINDS.get(kind, ("two whole numbers", (tuple,)))
    other_sides = isinstance(value, tuple) and [type(side) for side in value] != [int, int]
    if type(value) not in types or other_sides:
        raise InputError(sentence(name, expected=expected, got=repr(value), fix="Save the adaptor again."))
