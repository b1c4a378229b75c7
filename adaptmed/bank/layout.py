"""What of an encoder's tokens a bank keeps (layout) and in which number format (dtype)."""

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from adaptmed.errors import BankError, InputError, sentence
from adaptmed.types import Tokens

DType = Literal["float16", "bfloat16", "float32", "int8", "int4"]
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
    "int4": torch.uint8,
}
"""How the features of a bank are stored; of int4 a byte holds two."""


@dataclass(frozen=True)
class Layout:
    """Which tokens a bank keeps.

    Attributes:
        kind: ``grid`` averages an image's grid down to ``size`` x ``size`` and keeps its prefix tokens and whole texts;
            ``all`` keeps every token; ``pooled`` keeps the pooled vector as the only token, of images and of texts.
        size: Side of the kept grid with ``kind="grid"``. A grid that is smaller already stays as it is.

    Example:
        >>> str(Layout("grid", 8)), Layout.parse("pooled").kind
        ('grid8', 'pooled')
    """

    kind: Literal["grid", "all", "pooled"] = "grid"
    size: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("grid", "all", "pooled"):
            fix = "Pass one of these three."
            raise InputError(sentence("layout", expected="grid, all or pooled", got=self.kind, fix=fix))
        if self.size < 1:
            raise InputError(sentence("grid", expected="a side of at least 1 token", got=self.size, fix="Pass 8."))

    def __str__(self) -> str:
        return f"grid{self.size}" if self.kind == "grid" else self.kind

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a layout back from its name.

        Raises:
            InputError: The name is not ``grid<side>``, ``all`` or ``pooled``.
        """
        found = re.fullmatch(r"(grid)(\d+)|all|pooled", name)
        if found is None:
            fix = "Pass for example grid8."
            raise InputError(sentence("layout", expected="grid<side>, all or pooled", got=name, fix=fix))
        return cls("grid", int(found[2])) if found[1] else cls(name)  # type: ignore[arg-type]


def arrange_image(tokens: Tokens, layout: Layout) -> Tokens:
    """Keep of image Tokens what the layout says; means are taken in float32.

    Args:
        tokens: As the encoder gave them; values ``(batch, prefix + height * width, width)``.
        layout: What to keep.

    Returns:
        Tokens with the new grid. ``pooled`` has grid ``(1, 1)`` and no prefix.

    Raises:
        BankError: ``grid`` is asked of Tokens without a ``(height, width)`` grid.

    Example:
        >>> valid = torch.ones(2, 257, dtype=torch.bool)
        >>> tokens = Tokens(torch.zeros(2, 257, 3), valid, torch.zeros(2, 3), grid=(16, 16), prefix=1)
        >>> arrange_image(tokens, Layout("grid", 8)).values.shape
        torch.Size([2, 65, 3])
    """
    if layout.kind == "pooled":
        return replace(_only_pooled(tokens), grid=(1, 1), prefix=0)
    if layout.kind == "all":
        return tokens
    if tokens.grid is None or len(tokens.grid) != 2:
        fix = "Use the layout all or pooled."
        raise BankError(sentence("layout", expected="a (height, width) grid of tokens", got=tokens.grid, fix=fix))
    grid = (min(tokens.grid[0], layout.size), min(tokens.grid[1], layout.size))
    prefix, cells = tokens.values[:, : tokens.prefix], tokens.values[:, tokens.prefix :]
    image = cells.float().transpose(1, 2).unflatten(2, tokens.grid)
    small = adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    values = torch.cat([prefix.float(), small], dim=1)
    return replace(tokens, values=values, valid=values.new_ones(values.shape[:2], dtype=torch.bool), grid=grid)


def arrange_text(tokens: Tokens, layout: Layout) -> Tokens:
    """Keep of text Tokens what the layout says: everything, or with ``pooled`` the pooled vector as the only token."""
    return _only_pooled(tokens) if layout.kind == "pooled" else tokens


def vector_dtype(dtype: DType) -> DType:
    """Return the dtype of pooled vectors: one vector has nothing to share a scale with, so float16 beside codes."""
    return "float16" if dtype in ("int8", "int4") else dtype


def to_stored(values: Float[Tensor, "*shape"], dtype: DType) -> Float[Tensor, "*shape"]:
    """Cast features to the bank's dtype; codes are from ``quantised.stored_features``.

    Raises:
        BankError: A value is not finite, or is outside the range of float16 (65504).

    Example:
        >>> to_stored(torch.tensor([1e6]), "float16")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        adaptmed.errors.BankError: `dtype`: expected ... but got 1e+06. Use --dtype bfloat16 into another --out, ...
    """
    stored = values.to(DTYPES[dtype])
    if bool(torch.isfinite(stored).all()):
        return stored
    largest = values.float().abs().max().item()
    if bool(torch.isfinite(values).all()):
        expected = f"features within the range of {dtype} (65504)"
        fix = "Use --dtype bfloat16 into another --out, or delete this one."
        raise BankError(sentence("dtype", expected=expected, got=f"{largest:.6g}", fix=fix))
    fix = "Use --precision fp32 or another encoder, into another --out, or delete this one."
    raise BankError(sentence("encoder", expected="finite features", got=largest, fix=fix))


def _only_pooled(tokens: Tokens) -> Tokens:
    values = tokens.pooled[:, None]
    return replace(tokens, values=values, valid=torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))
