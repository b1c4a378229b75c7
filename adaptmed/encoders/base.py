"""What every encoder shares: freezing, the fingerprint, taps, and the checks of pixels and texts."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmed.errors import InputError, sentence
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder, TokenIds, Tokens

Maps = list[Float[Tensor, "batch _channel _rows _columns"]]
"""Feature maps of one batch, shallow to deep."""


@dataclass(frozen=True)
class Entrance:
    """Where the tokens of an image, positions added, enter a transformer's blocks.

    Attributes:
        module: Name inside the library's module of the layer that gives them: the prefix, then one token per patch, row
            by row, that has seen this patch alone.
        prefix: How many tokens stand before the patches.
        patch_px: Height and width of a patch.
    """

    module: str
    prefix: int
    patch_px: tuple[int, int]


class FrozenEncoder(nn.Module):
    """A network that stays as it was pretrained: no gradients for its weights, always in evaluation mode.

    Gradients still flow *through* it, so that LoRA inside it and prompts before it can be trained.

    Args:
        module: The library's own network; it is frozen in place.
        name: The full name the encoder is loaded by.
    """

    entrance: Entrance | None = None
    """Of an image encoder that can leave patches out; ``None`` of every other."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name
        self.lora: Any = None  # what ``adaptmed.lora`` puts here
        self.module.requires_grad_(requires_grad=False)
        self.train()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode whatever is asked: BatchNorm statistics never move, only LoRA's dropout follows."""
        super().train(mode=False)
        if self.lora is not None:
            self.lora.train(mode)
        return self

    def fingerprint(self) -> str:
        """Return the sha256 over the frozen weights; see :func:`fingerprint`."""
        return fingerprint(self.module, without=() if self.lora is None else self.lora.parameters())


def fingerprint(module: nn.Module, *, without: Iterable[Tensor] = ()) -> str:
    """Return the sha256 over a network's frozen weights.

    Covers every parameter that takes no gradient and is not among ``without`` (LoRA), and every persistent
    floating-point buffer (BatchNorm statistics), each as its shape and its values in fp32, in an order that does
    not depend on names. Equal weights under other names, in another order, stored in fp16 or used at another image
    size give the same value. Tied weights count once; integer buffers (counters, position ids) do not count.

    Example:
        >>> layer = nn.Linear(2, 2).requires_grad_(False)
        >>> fingerprint(layer) == fingerprint(nn.ModuleDict({"renamed": layer}))
        True
    """
    state = module.state_dict(keep_vars=True).values()
    tensors = {id(tensor): tensor for tensor in state if isinstance(tensor, Tensor) and tensor.is_floating_point()}
    added = {id(tensor) for tensor in without}
    digests = sorted(_digest(t) for key, t in tensors.items() if not t.requires_grad and key not in added)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def tap_indices(blocks: int, count: int) -> list[int]:
    """Return which of ``blocks`` blocks to read for ``count`` taps: evenly spaced, the last one always among them.

    Raises:
        InputError: ``count`` is not in [1, blocks].

    Example:
        >>> tap_indices(12, 4)
        [2, 5, 8, 11]
    """
    if not 1 <= count <= blocks:
        fix = "Ask for fewer taps."
        raise InputError(
            sentence("count", expected=f"between 1 and {blocks} (the blocks there are)", got=count, fix=fix)
        )
    return [blocks * (i + 1) // count - 1 for i in range(count)]


@contextmanager
def _recorded(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of ``layers`` while the network runs inside this block."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def tokens_and_taps(
    encoder: ImageEncoder, pixels: Float[Tensor, "batch 3 height width_px"], count: int
) -> tuple[Tokens, Maps]:
    """Return what ``encoder(pixels)`` and ``encoder.taps(pixels, count)`` give.

    One forward pass gives both with every encoder of this package; an encoder without a ``tokens_and_taps`` of its own
    is run twice.

    Args:
        encoder: Any image encoder.
        pixels: Normalised.
        count: Of the taps, shallow to deep; 0 gives none.

    Raises:
        InputError: There are fewer taps.
    """
    if count == 0:
        return encoder(pixels), []
    own = getattr(encoder, "tokens_and_taps", None)
    return (encoder(pixels), encoder.taps(pixels, count)) if own is None else own(pixels, count)


def recorded_taps(
    encoder: ImageEncoder, pixels: Float[Tensor, "batch 3 height width_px"], count: int
) -> tuple[Tokens, Maps]:
    """Return a transformer's Tokens, and its grid tokens after ``count`` blocks as maps, before any final norm."""
    with _recorded([encoder.blocks[i] for i in tap_indices(len(encoder.blocks), count)]) as layers:
        tokens = encoder(pixels)
    assert tokens.grid is not None, "an image encoder's Tokens have a grid"
    return tokens, [layer[:, tokens.prefix :].transpose(1, 2).unflatten(2, tokens.grid) for layer in layers]


def text_taps(
    encoder: TextEncoder, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"], count: int
) -> list[Float[Tensor, "batch token width"]]:
    """Return the token features after ``count`` blocks of a text network, before any final norm."""
    with _recorded([encoder.blocks[i] for i in tap_indices(len(encoder.blocks), count)]) as layers:
        encoder(input_ids, valid)
    return [layer[:, : input_ids.shape[1]] for layer in layers]


def check_pixels(pixels: Tensor, patch: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return the size of ``pixels`` in patches, ``(height, width)``.

    Raises:
        InputError: Not a batch of three-channel images, or a side is no multiple of the patch.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        fix = "Repeat the one channel of grey images three times."
        raise InputError(
            sentence("pixels", expected="shape (batch, 3, height, width)", got=tuple(pixels.shape), fix=fix)
        )
    return check_size((pixels.shape[2], pixels.shape[3]), patch, "pixels")


def check_size(size_px: tuple[int, int], patch: tuple[int, int], argument: str) -> tuple[int, int]:
    """Return ``size_px`` in patches; raise InputError that names the nearest sizes when it does not fit."""
    if any(side < 1 or side % step for side, step in zip(size_px, patch, strict=True)):
        near = [max(side // step, 1) * step for side, step in zip(size_px, patch, strict=True)]
        above = [-(-side // step) * step for side, step in zip(size_px, patch, strict=True)]
        fix = f"The nearest sizes are {near[0]}x{near[1]} and {max(above[0], near[0])}x{max(above[1], near[1])}."
        expected = f"height and width that are multiples of the patch ({patch[0]}x{patch[1]})"
        raise InputError(sentence(argument, expected=expected, got=f"{size_px[0]}x{size_px[1]}", fix=fix))
    return size_px[0] // patch[0], size_px[1] // patch[1]


def image_tokens(
    values: Float[Tensor, "batch token width"], pooled: Float[Tensor, "batch width"], grid: tuple[int, int], prefix: int
) -> Tokens:
    """Return the Tokens of images: all of them valid."""
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device), pooled, grid, prefix)


def interpolate_positions(
    positions: Float[Tensor, "token width"], own: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "new_token width"]:
    """Interpolate the positions of a grid with one CLS position in front: bicubic, antialiased, in fp32."""
    if own == grid:
        return positions
    table = positions[1:].float().T.unflatten(1, own)[None]
    table = F.interpolate(table, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], table[0].flatten(1).T.to(positions.dtype)])


def resized(preprocessing: Preprocessing, image_size_px: int | None) -> Preprocessing:
    """Return the same facts with a square input of ``image_size_px``, or unchanged when that is None."""
    if image_size_px is None:
        return preprocessing
    return replace(preprocessing, image_size_px=(image_size_px, image_size_px))


def kept(module: nn.Module, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``suffixes`` that end the name of at least one layer of ``module``."""
    names = [name for name, _ in module.named_modules()]
    return tuple(suffix for suffix in suffixes if any(f".{name}".endswith(f".{suffix}") for name in names))


def token_limit(texts: Sequence[str], limit: int, max_tokens: int | None) -> int:
    """Return how many tokens a text may have; check the texts on the way.

    Raises:
        InputError: No texts, an item that is no string, or ``max_tokens`` outside [2, limit].
    """
    if isinstance(texts, str) or not texts:
        raise InputError(
            sentence("texts", expected="one or more strings in a list", got=repr(texts), fix="Pass a list.")
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            fix = "Leave rows without text out, or give the empty string."
            raise InputError(sentence(f"texts[{index}]", expected="a string", got=type(text).__name__, fix=fix))
    if max_tokens is not None and not 2 <= max_tokens <= limit:
        expected = f"between 2 and {limit} (this encoder's limit)"
        raise InputError(sentence("max_tokens", expected=expected, got=max_tokens, fix="Choose a value in that range."))
    return limit if max_tokens is None else max_tokens


def padded(rows: Sequence[Sequence[int]], truncated: Sequence[bool], pad_id: int) -> TokenIds:
    """Put word ids of different lengths into one tensor, padded on the right to the longest."""
    input_ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    valid = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return TokenIds(input_ids, valid, torch.tensor(truncated))


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Say in words why the weights of ``name`` could not be had, whatever the library below raises."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        fix = (
            "Without network only `bundled:` encoders and local folders (`hf:./folder`) work. Check the name, then "
            "load it once with network (the cache is ~/.cache/huggingface), or copy the model's folder to this machine."
        )
        expected = "its weights in the local cache, or a network to fetch them"
        raise InputError(sentence(name, expected=expected, got=f"{type(error).__name__}: {reason}", fix=fix)) from error
