"""What a decoder is made of, as plain values that a JSON file can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from adaptmed.errors import InputError, sentence

Kind = Literal["image-concat", "dpt", "unetr", "unet"]
GROUPS = 4
"""Groups of every GroupNorm; numbers of channels are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class ImageConcatConfig:
    """The shape of an image-concat decoder.

    Attributes:
        widths: Channels of the one map it reads, the fused grid: ``(width,)``.
        classes: Logits per pixel: 1 for foreground against background, otherwise one per class, background first.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels at the input's size, one more times as many at every level down; a multiple of 4.
        image_channels: Channels of the raw image.
    """

    kind: ClassVar[Kind] = "image-concat"
    widths: tuple[int, ...]
    classes: int
    spatial_dims: int = 2
    channels: int = 16
    image_channels: int = 3

    def __post_init__(self) -> None:
        _check(self)
        if len(self.widths) != 1:
            got, fix = f"{len(self.widths)} maps", "Leave the other taps out, or choose another decoder."
            raise InputError(sentence("widths", expected="one map, the fused grid", got=got, fix=fix))


@dataclass(frozen=True, kw_only=True)
class DptConfig:
    """The shape of a DPT-style decoder.

    Attributes:
        widths: Channels of the taps, shallow to deep; the last one is the fused grid.
        classes: Logits per pixel: 1 for foreground against background, otherwise one per class, background first.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels at the input's size, four times as many at every level; a multiple of 4.
    """

    kind: ClassVar[Kind] = "dpt"
    widths: tuple[int, ...]
    classes: int
    spatial_dims: int = 2
    channels: int = 16

    def __post_init__(self) -> None:
        _check(self)
        _check_several(self.widths)


@dataclass(frozen=True, kw_only=True)
class UnetrConfig:
    """The shape of a UNETR-style decoder.

    Attributes:
        widths: Channels of the taps, shallow to deep; the last one is the fused grid.
        classes: Logits per pixel: 1 for foreground against background, otherwise one per class, background first.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels at the input's size, doubled per level up to four times as many; a multiple of 4.
        image_channels: Channels of the raw image.
    """

    kind: ClassVar[Kind] = "unetr"
    widths: tuple[int, ...]
    classes: int
    spatial_dims: int = 2
    channels: int = 16
    image_channels: int = 3

    def __post_init__(self) -> None:
        _check(self)
        _check_several(self.widths)


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """The shape of a U-Net decoder.

    Attributes:
        widths: Channels of the pyramid, shallow to deep; the last map is the fused grid.
        classes: Logits per pixel: 1 for foreground against background, otherwise one per class, background first.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels at the input's size, doubled per level up to eight times as many; a multiple of 4.
    """

    kind: ClassVar[Kind] = "unet"
    widths: tuple[int, ...]
    classes: int
    spatial_dims: int = 2
    channels: int = 16

    def __post_init__(self) -> None:
        _check(self)
        _check_several(self.widths)


DecoderConfig = ImageConcatConfig | DptConfig | UnetrConfig | UnetConfig
CONFIGS: Mapping[str, type[DecoderConfig]] = {
    config.kind: config for config in (ImageConcatConfig, DptConfig, UnetrConfig, UnetConfig)
}


def decoder_config(
    kind: str,
    *,
    tap_widths: Sequence[int],
    fused_width: int,
    classes: int,
    spatial_dims: int = 2,
    channels: int | None = None,
) -> DecoderConfig:
    """Return the configuration of a decoder for what an encoder gives.

    Args:
        kind: Kind of the decoder.
        tap_widths: Channels of the taps, shallow to deep, the deepest left out; not read by ``image-concat``.
        fused_width: Channels of the fused grid, which takes the place of the deepest tap.
        classes: Logits per pixel.
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels at the input's size; ``None`` is the decoder's default.

    Raises:
        InputError: The kind is unknown, or reads taps and there are none.

    Example:
        >>> decoder_config("dpt", tap_widths=(12, 12), fused_width=8, classes=2).widths
        (12, 12, 8)
    """
    chosen = {} if channels is None else {"channels": channels}
    widths = [fused_width] if kind == "image-concat" else [*tap_widths, fused_width]
    if kind not in CONFIGS:
        expected, fix = f"one of {', '.join(CONFIGS)}", "Check the spelling."
        raise InputError(sentence("decoder", expected=expected, got=repr(kind), fix=fix))
    return CONFIGS[kind](widths=tuple(widths), classes=classes, spatial_dims=spatial_dims, **chosen)


def to_json(config: DecoderConfig) -> dict[str, Any]:
    """Return the kind and the fields of a configuration, as JSON holds them.

    Example:
        >>> config = DptConfig(widths=(8, 8), classes=2)
        >>> from_json(to_json(config)) == config
        True
    """
    return {"kind": config.kind, **asdict(config), "widths": list(config.widths)}


def from_json(found: Mapping[str, Any]) -> DecoderConfig:
    """Rebuild a configuration from what `to_json` and a JSON file made of it.

    Raises:
        InputError: The kind is unknown, or a field is missing, unknown, of another type or out of range.
    """
    kind = found.get("kind")
    if not isinstance(kind, str) or kind not in CONFIGS:
        fix = "Read it with the version that wrote it."
        raise InputError(sentence("decoder.kind", expected=f"one of {', '.join(CONFIGS)}", got=repr(kind), fix=fix))
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    del values["kind"]
    known = {field.name: field.type for field in fields(CONFIGS[kind])}
    if set(values) != set(known):
        expected = f"exactly the fields {', '.join(sorted(known))}"
        got = f"missing {sorted(set(known) - set(values))}, unknown {sorted(set(values) - set(known))}"
        raise InputError(sentence("decoder", expected=expected, got=got, fix="Save the decoder again."))
    for name, value in values.items():
        several = isinstance(value, tuple)
        if several != (known[name] is not int) or {type(item) for item in (value if several else [value])} - {int}:
            expected = "a whole number" if known[name] is int else "whole numbers"
            fix = "Save the decoder again."
            raise InputError(sentence(f"decoder.{name}", expected=expected, got=repr(value), fix=fix))
    return CONFIGS[kind](**values)


def _check(config: DecoderConfig) -> None:
    if config.spatial_dims not in (2, 3):
        expected, fix = "2 (images) or 3 (volumes)", "Pass 2 or 3."
        raise InputError(sentence("spatial_dims", expected=expected, got=config.spatial_dims, fix=fix))
    if config.channels < GROUPS or config.channels % GROUPS:
        fix = "Try 16."
        raise InputError(sentence("channels", expected=f"a multiple of {GROUPS}", got=config.channels, fix=fix))
    sizes = {"classes": config.classes, "image_channels": getattr(config, "image_channels", 1)}
    sizes |= {f"widths[{index}]": width for index, width in enumerate(config.widths)}
    for name, value in sizes.items():
        if value < 1:
            fix = "Raise it."
            raise InputError(sentence(name, expected="a whole number of at least 1", got=value, fix=fix))


def _check_several(widths: tuple[int, ...]) -> None:
    if len(widths) < 2:
        expected, got = "at least two maps, shallow to deep", f"{len(widths)}"
        fix = "Run `adaptmed embed` with --taps 4, or choose the decoder image-concat."
        raise InputError(sentence("widths", expected=expected, got=got, fix=fix))
