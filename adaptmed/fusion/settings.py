"""Settings of a method's fusion: kind and sizes, before the widths of its encoders are known."""

from dataclasses import dataclass

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.config import CONFIGS, check_kind


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """Which fusion a method trains, and how large it is.

    Attributes:
        kind: ``cross``, whose layers both sides share, or ``co``, a stack of layers for each side.
        width: Width of the fusion and of the embeddings.
        layers: Layers; of ``co`` for each side.
        heads: Attention heads; they divide the width.
        dropout: Dropout inside the layers during training, in [0, 1).
        faithful: Arrange ``cross`` as the released code of its paper does; its sizes are then fixed.

    Raises:
        InputError: If the kind is unknown, or has no released arrangement.
    """

    kind: str = "cross"
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    faithful: bool = False

    def __post_init__(self) -> None:
        check_kind(self.kind, faithful=self.faithful)
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(sentence(name, expected="at least 1", got=getattr(self, name), fix="Raise it."))
        if self.width % self.heads:
            expected, fix = f"a divisor of width={self.width}", "Choose another width or number of heads."
            raise InputError(sentence("heads", expected=expected, got=self.heads, fix=fix))
        if not 0 <= self.dropout < 1:
            raise InputError(sentence("dropout", expected="a share in [0, 1)", got=self.dropout, fix="Try 0.1."))

    @property
    def has_streams(self) -> bool:
        """Whether the tokens of each side can be read after any layer, as hidden words and patches need."""
        return CONFIGS[self.kind].has_streams
