"""Capabilities of fusions, which are asked for in place of their classes, and what every fusion refuses."""

from collections.abc import Mapping, Sequence
from typing import Protocol, overload, runtime_checkable

from adaptmed.errors import InputError, sentence
from adaptmed.layers.standardise import Standardise
from adaptmed.types import Side, Tokens


@runtime_checkable
class Capabilities(Protocol):
    """What every fusion says of itself."""

    @property
    def reads_texts(self) -> bool:
        """Whether it has a stream of texts; a fusion of images alone refuses them."""
        ...

    @property
    def has_streams(self) -> bool:
        """Whether every modality has layers of its own; the fusion then is a :class:`Streams`."""
        ...

    @property
    def standardisers(self) -> Mapping[Side, Standardise]:
        """The layers that standardise its inputs, by side, to be fitted once; empty where inputs enter as they are."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A fusion whose modalities have layers of their own: its Tokens can be read as any of these layers leaves them."""

    @property
    def layer_count(self) -> int:
        """Layers of each modality."""
        ...

    @overload
    def streams(self, image: Tokens, text: Tokens, *, layer: int | None = None) -> tuple[Tokens, Tokens]: ...
    @overload
    def streams(self, image: Tokens, text: None = None, *, layer: int | None = None) -> tuple[Tokens, None]: ...
    @overload
    def streams(self, image: None = None, *, text: Tokens, layer: int | None = None) -> tuple[None, Tokens]: ...
    @overload
    def streams(
        self, image: Tokens | None = None, text: Tokens | None = None, *, layer: int | None = None
    ) -> tuple[Tokens | None, Tokens | None]: ...
    def streams(
        self, image: Tokens | None = None, text: Tokens | None = None, *, layer: int | None = None
    ) -> tuple[Tokens | None, Tokens | None]:
        """Return the Tokens of both modalities as a layer leaves them, ``None`` where one is missing.

        Raises:
            InputError: If both are missing, their batch sizes differ, there is no such layer, or a text is given to a
                fusion of images alone.
        """
        ...

    def streams_at(
        self, layers: Sequence[int], image: Tokens | None = None, text: Tokens | None = None
    ) -> list[tuple[Tokens | None, Tokens | None]]:
        """Return what :meth:`streams` does of several layers, in their order, from one pass."""
        ...

    def freeze_unread(self, *, image: int | None, text: int | None = None) -> None:
        """Freeze what a training leaves out that reads neither embeddings nor joint vectors, but Tokens of streams.

        Its own losses would never reach these weights: the poolers, where there are any, and layers that nothing reads.
        A layer of one modality reads the other one as its layer before left it.

        Args:
            image: Deepest layer whose image Tokens are read, from 0 to ``layer_count``; ``None`` if none is.
            text: Deepest layer whose text Tokens are read.
        """
        ...


def require_texts(fusion: Capabilities) -> None:
    """Refuse a text that is given to a fusion of images alone.

    Raises:
        InputError: If it is one.
    """
    if not fusion.reads_texts:
        expected, fix = "images alone, all that this fusion reads", "Leave texts out, or add a text encoder to it."
        raise InputError(sentence("text", expected=expected, got="a text", fix=fix))


def check_sides(fusion: Capabilities, image: Tokens | None, text: Tokens | None) -> None:
    """Refuse an empty call, a text that the fusion does not read, and pairs whose sides do not belong together.

    Raises:
        InputError: If both are missing, their batch sizes differ, or a text is given to a fusion of images alone.
    """
    if image is None and text is None:
        raise InputError(sentence("image, text", expected="at least one of them", got="neither", fix="Pass one."))
    if text is not None:
        require_texts(fusion)
    if image is not None and text is not None and len(image) != len(text):
        raise InputError(
            sentence(
                "text",
                expected=f"as many texts as images ({len(image)})",
                got=len(text),
                fix="Give one text per image, or leave one side out.",
            )
        )
