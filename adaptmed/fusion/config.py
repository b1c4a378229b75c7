"""What a fusion is made of, as plain values that a JSON file can hold."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from adaptmed.errors import InputError, sentence
from adaptmed.types import Side

MAX_LOG_SCALE = math.log(100.0)
"""The factor on cosine similarities never exceeds 100; training keeps its logarithm below this."""
_KINDS: Mapping[object, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    int | None: ("a whole number or null", (int, type(None))),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
}


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """The shape of a ``cross`` fusion.

    Attributes:
        image_width: Width of the image encoder's tokens.
        text_width: Width of the text encoder's tokens; ``None`` makes a fusion of images alone.
        width: Width of the fusion and of both embeddings.
        layers: Number of layers, each shared between the modalities.
        heads: Attention heads; must divide ``width``.
        dropout: Dropout inside the layers during training, in [0, 1).
        image_grid: Grid at which image positions are learned; other grids are interpolated.
        image_prefix: Image tokens outside the grid (CLS, registers).
        faithful: Build the arrangement of the paper's released code instead (see ``ReleasedCrossFusion``).
    """

    kind: ClassVar[str] = "cross"
    has_streams: ClassVar[bool] = False
    has_released: ClassVar[bool] = True
    image_width: int
    text_width: int | None
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    image_grid: tuple[int, int] = (8, 8)
    image_prefix: int = 1
    faithful: bool = False

    def __post_init__(self) -> None:
        _check(self)
        if self.faithful and self.text_width is None:
            expected, fix = (
                "a width: the released arrangement fuses pairs",
                "Leave faithful out, or add a text encoder.",
            )
            raise InputError(sentence("text_width", expected=expected, got=None, fix=fix))

    @classmethod
    def shaped(cls, grid: tuple[int, int], *, faithful: bool, image_width: int, **given: Any) -> Self:
        """Shape it for the Tokens of encoders; the released sizes have no choice."""
        if faithful:
            return cls.released(image_width, given["text_width"])
        return cls(image_grid=grid, image_width=image_width, **given)

    @classmethod
    def released(cls, image_width: int, text_width: int | None = 768) -> Self:
        """The sizes of the paper's released code: width 768, two layers, twelve heads."""
        return cls(
            image_width=image_width, text_width=text_width, width=768, layers=2, heads=12, dropout=0.1, faithful=True
        )


@dataclass(frozen=True, kw_only=True)
class CoConfig:
    """The shape of a ``co`` fusion; the defaults are the size ``light``.

    Attributes:
        image_width: Width of the image encoder's tokens.
        text_width: Width of the text encoder's tokens; ``None`` makes a fusion of images alone.
        width: Width of the fusion and of both embeddings.
        layers: Number of layers per modality; none is shared. Those of a fusion of images alone have no cross step.
        heads: Attention heads; must divide ``width``.
        dropout: Dropout inside the layers during training, in [0, 1).
        image_prefix: Image tokens outside the grid. The first is pooled, or the mean of the grid where there is none,
            and always the mean in a fusion of images alone.
    """

    kind: ClassVar[str] = "co"
    has_streams: ClassVar[bool] = True
    has_released: ClassVar[bool] = False
    image_width: int
    text_width: int | None
    width: int = 256
    layers: int = 6
    heads: int = 4
    dropout: float = 0.1
    image_prefix: int = 1

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def shaped(cls, grid: tuple[int, int], *, faithful: bool, image_width: int, **given: Any) -> Self:
        """Shape it for the Tokens of encoders; it has no positions, and so no grid."""
        del grid, faithful
        return cls(image_width=image_width, **given)

    @classmethod
    def paper(cls, image_width: int = 768, text_width: int | None = 768, *, image_prefix: int = 1) -> Self:
        """The size of M3AE and UMD: width 768, six layers per modality, twelve heads."""
        return cls(image_width=image_width, text_width=text_width, width=768, heads=12, image_prefix=image_prefix)


FusionConfig = CrossConfig | CoConfig
CONFIGS: Mapping[str, type[FusionConfig]] = {config.kind: config for config in (CrossConfig, CoConfig)}
"""Kind of fusion → its configuration."""


def check_kind(kind: str, *, faithful: bool) -> None:
    """Refuse a kind of fusion that does not exist, or whose released arrangement does not.

    Raises:
        InputError: If so.
    """
    if kind not in CONFIGS:
        fix = "Choose one of these."
        raise InputError(sentence("fusion", expected=_one_of_the_kinds(), got=repr(kind), fix=fix))
    if faithful and not CONFIGS[kind].has_released:
        expected, fix = f"False with fusion={kind!r}", "Leave it out, or choose fusion='cross'."
        raise InputError(sentence("faithful", expected=expected, got=True, fix=fix))


def fusion_config(
    kind: str,
    widths: tuple[int, int | None],
    *,
    grid: tuple[int, ...],
    prefix: int,
    faithful: bool = False,
    **sizes: int | float | None,
) -> FusionConfig:
    """Shape a fusion of a kind for the Tokens of two encoders, or of an image encoder alone.

    Args:
        kind: ``cross`` or ``co``.
        widths: Width of the image encoder's tokens and of the text encoder's; ``None`` without a text encoder.
        grid: ``(…, height, width)`` of the image Tokens.
        prefix: Image tokens outside the grid.
        faithful: The arrangement of the Adaptor paper's released code, whose sizes are fixed; of ``cross`` alone.
        sizes: ``width``, ``layers``, ``heads``, ``dropout``; ``None`` takes the kind's own.

    Raises:
        InputError: If the kind is unknown, has no released arrangement (there is none without texts either), or a size
            is not one there is.

    Example:
        >>> fusion_config("co", (384, 768), grid=(8, 8), prefix=1, layers=None).layers
        6
    """
    check_kind(kind, faithful=faithful)
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    given |= {"image_width": widths[0], "text_width": widths[1], "image_prefix": prefix}
    return CONFIGS[kind].shaped((grid[-2], grid[-1]), faithful=faithful, **given)


def side_widths(config: FusionConfig) -> dict[Side, int]:
    """Return the width of each encoder's Tokens that a fusion reads: of images, and of texts where it reads them.

    Example:
        >>> side_widths(CoConfig(image_width=384, text_width=None))
        {'image': 384}
    """
    widths: dict[Side, int] = {"image": config.image_width}
    return widths if config.text_width is None else widths | {"text": config.text_width}


def to_json(config: FusionConfig) -> dict[str, Any]:
    """Return the kind and the fields of a configuration, as JSON holds them.

    Example:
        >>> config = CoConfig(image_width=384, text_width=768)
        >>> from_json(to_json(config)) == config
        True
    """
    return {"kind": config.kind, **asdict(config)}


def from_json(found: Mapping[str, Any]) -> FusionConfig:
    """Rebuild a configuration from what `to_json` and a JSON file made of it.

    Raises:
        InputError: The kind is unknown, or a field is missing, unknown, of another type or out of range.
    """
    kind = found.get("kind")
    if not isinstance(kind, str) or kind not in CONFIGS:
        fix = "Read it with the version that wrote it."
        raise InputError(sentence("fusion.kind", expected=_one_of_the_kinds(), got=repr(kind), fix=fix))
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
    del values["kind"]
    known = {field.name: field.type for field in fields(CONFIGS[kind])}
    if set(values) != set(known):
        expected = f"exactly the fields {', '.join(sorted(known))}"
        got = f"missing {sorted(set(known) - set(values))}, unknown {sorted(set(values) - set(known))}"
        fix = "Save the adaptor again with this version."
        raise InputError(sentence("fusion", expected=expected, got=got, fix=fix))
    for name, expected_type in known.items():
        _check_type(f"fusion.{name}", values[name], expected_type)
    return CONFIGS[kind](**values)


def _one_of_the_kinds() -> str:
    return f"one of {', '.join(CONFIGS)}"


def _check(config: FusionConfig) -> None:
    for name in ("image_width", "text_width", "width", "layers", "heads"):
        got = getattr(config, name)
        if got is not None and got < 1:
            raise InputError(sentence(name, expected="a whole number of at least 1", got=got, fix="Raise it."))
    if config.width % config.heads:
        expected, fix = f"a divisor of width={config.width}", "Choose another width or number of heads."
        raise InputError(sentence("heads", expected=expected, got=config.heads, fix=fix))
    if not 0 <= config.dropout < 1:
        raise InputError(sentence("dropout", expected="a share in [0, 1)", got=config.dropout, fix="Try 0.1."))


def _check_type(name: str, value: object, kind: object) -> None:
    """Refuse what a JSON file holds in place of a number, a switch or a grid."""
    expected, types = _KINDS.get(kind, ("two whole numbers", (tuple,)))
    other_sides = isinstance(value, tuple) and [type(side) for side in value] != [int, int]
    if type(value) not in types or other_sides:
        raise InputError(sentence(name, expected=expected, got=repr(value), fix="Save the adaptor again."))
