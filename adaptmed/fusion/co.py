"""The ``co`` fusion of M3AE and UMD: a stack of layers per modality, each of which reads the other stream.

References: Chen et al. 2022, "Multi-modal masked autoencoders for medical vision-and-language pre-training",
arXiv:2209.07098 (M3AE); Zhang, Pan, Yang, Li, Chen 2024, "Unified multi-modal diagnostic framework with reconstruction
pre-training and heterogeneity-combat tuning", arXiv:2404.06057 (UMD).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.base import check_sides, require_texts
from adaptmed.fusion.config import MAX_LOG_SCALE, CoConfig, side_widths
from adaptmed.layers.attention import CoBlock
from adaptmed.layers.padding import compact, embed_by_length, restore
from adaptmed.layers.pooling import masked_mean
from adaptmed.layers.standardise import Standardise
from adaptmed.types import Fused, Side, Tokens

Stream = tuple[Float[Tensor, "batch _ _"], Bool[Tensor, "batch _"] | None]
"""Values ``(batch, token, width)`` without padding that no item needs, and which are valid; ``None`` when all are."""


class CoFusion(nn.Module):
    """Layers of each modality's own: self-attention, cross-attention to the other modality, feed-forward (post-norm).

    Both streams are updated side by side, as in the released code: a layer's cross step reads the other stream as the
    layer before left it, not as this layer's self-attention has changed it. Every encoder's tokens enter through a
    projection and a learned vector of their modality; the papers add no positions, and no norm before the layers. A
    modality's first token, through a dense layer and tanh, is its pooled vector; ``joint`` is both, text first.

    Where a modality is missing the cross step is skipped, for the whole batch or for the items that lack it. The
    embeddings are always those of each stream alone: the pooled vector, L2-normalised. Padding is not computed: image
    tokens hidden from the fusion (``valid`` False) cost nothing and come back as zeros in their places.

    Every parameter serves the pair: matching reads both poolers and, through them, both stacks. Neither paper
    contrasts the embeddings, so the temperature is a saved constant (0.07), not a parameter, and there are no other
    layers behind the poolers. Dense layers start at N(0, 0.02 √(768 / width)): at the papers' width as BERT does, and
    a narrower fusion passes on as much of the other modality, where 0.02 at 128 would leave 5 % of it.

    Deviations from the released code, on purpose: inputs are standardised; attention weights are not dropped (the
    branch around them is); the first *valid* token is pooled; images without a prefix token are pooled by their mean;
    one modality can pass alone.

    Without a ``text_width`` it is one stream: no text parts, no cross steps, no pooler. Its pooled vector is then the
    mean of the valid grid tokens as the last layer leaves them, and its embedding that mean, L2-normalised.

    Args:
        config: Shape of the fusion.
    """

    has_streams: ClassVar[bool] = True
    image_standardise: Standardise
    text_standardise: Standardise
    image_project: nn.Linear
    text_project: nn.Linear
    image_type: nn.Parameter
    text_type: nn.Parameter
    image_layers: nn.ModuleList
    text_layers: nn.ModuleList
    image_pool: nn.Linear
    text_pool: nn.Linear
    log_scale: Tensor

    def __init__(self, config: CoConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        widths = side_widths(config)
        for side, width in widths.items():  # part by part, not side by side: seeds and optimisers follow this order
            self.add_module(f"{side}_standardise", Standardise(width))
        for side, width in widths.items():
            self.add_module(f"{side}_project", nn.Linear(width, config.width))
        for side in widths:
            self.register_parameter(f"{side}_type", nn.Parameter(torch.randn(config.width) * 0.02))
        for side in widths:
            self.add_module(f"{side}_layers", _layers(config))
        if self.reads_texts:
            for side in widths:
                self.add_module(f"{side}_pool", nn.Linear(config.width, config.width))
        self.register_buffer("log_scale", torch.tensor(math.log(1 / 0.07)))
        self.apply(partial(_start, width=config.width))

    @property
    def reads_texts(self) -> bool:
        """Whether it has a stream of texts."""
        return self.config.text_width is not None

    @property
    def layer_count(self) -> int:
        """Layers of each modality."""
        return self.config.layers

    @property
    def standardisers(self) -> dict[Side, Standardise]:
        """The layers that standardise image and text Tokens."""
        images: dict[Side, Standardise] = {"image": self.image_standardise}
        return images | {"text": self.text_standardise} if self.reads_texts else images

    def scale(self) -> Float[Tensor, ""]:
        """Factor on cosine similarities, 1 / temperature, never above 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def embed_image(self, image: Tokens) -> Float[Tensor, "batch width"]:
        """Embed images alone, L2-normalised."""
        return functional.normalize(self.streams(image)[0].pooled, dim=-1)

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Embed texts alone, L2-normalised; an item without any valid token gets the same constant as every other.

        Raises:
            InputError: If it is a fusion of images alone.
        """
        require_texts(self)
        if not len(text):
            return text.values.new_zeros(0, self.width, dtype=torch.float32)
        return embed_by_length(self._embed_text, text)

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
        """Return the Tokens of both modalities as a layer leaves them; no later layer is computed.

        M3AE's patch decoder reads the image Tokens of layer 3, UMD's those of the last.

        Args:
            image: Image Tokens, or ``None``.
            text: Text Tokens of the same items, or ``None``; always ``None`` in a fusion of images alone.
            layer: From 0 (what enters the first layer) to ``config.layers``; ``None`` is the last.

        Returns:
            Image Tokens and text Tokens, in the layout they came in, zeros at padding; ``None`` where one is missing.

        Raises:
            InputError: If both are missing, their batch sizes differ, there is no such layer, or a text is given to a
                fusion of images alone.
        """
        return self.streams_at([self.config.layers if layer is None else layer], image, text)[0]

    def streams_at(
        self, layers: Sequence[int], image: Tokens | None = None, text: Tokens | None = None
    ) -> list[tuple[Tokens | None, Tokens | None]]:
        """Return what :meth:`streams` does of several layers, in their order, from one pass."""
        check_sides(self, image, text)
        for layer in layers:
            if not 0 <= layer <= self.config.layers:
                expected, fix = f"a layer from 0 to {self.config.layers}", "Leave it out for the last."
                raise InputError(sentence("layer", expected=expected, got=layer, fix=fix))
        x = None if image is None else self._enter_image(image)
        y = None if text is None else self._enter_text(text)
        reached = {0: (x, y)}
        for number in range(max(layers)):  # both sides of the pair on the right are of the layer before
            x, y = self._step("image", number, x, y), self._step("text", number, y, x)
            if number + 1 in layers:
                reached[number + 1] = (x, y)
        found = [reached[layer] for layer in layers]
        return [(self._leave("image", x, image), self._leave("text", y, text)) for x, y in found]

    def freeze_unread(self, *, image: int | None, text: int | None = None) -> None:
        """Freeze the poolers and the layers that nothing reads, see :meth:`adaptmed.fusion.base.Streams`."""
        unread: list[nn.Module] = [*self.image_layers[max(image or 0, (text or 0) - 1) :]]
        if self.reads_texts:
            unread += [self.image_pool, self.text_pool, *self.text_layers[max(text or 0, (image or 0) - 1) :]]
        for module in unread:
            module.requires_grad_(requires_grad=False)

    def fuse(self, image: Tokens, text: Tokens) -> tuple[Tokens, Tokens, Float[Tensor, "batch joint_width"]]:
        """Let the two sides of each pair read each other.

        Returns:
            Image Tokens and text Tokens that have seen the other side, and the joint vector of width 2 × ``width``:
            the text's pooled vector, then the image's.

        Raises:
            InputError: If it is a fusion of images alone.
        """
        fused_image, fused_text = self.streams(image, text)
        return fused_image, fused_text, torch.cat([fused_text.pooled, fused_image.pooled], dim=1)

    def forward(self, image: Tokens | None = None, text: Tokens | None = None) -> Fused:
        """Fuse pairs, or carry one modality alone when the other is missing.

        Args:
            image: Image Tokens, or ``None``.
            text: Text Tokens of the same items, or ``None``.

        Raises:
            InputError: If both are missing, their batch sizes differ, or a text is given to a fusion of images alone.
        """
        check_sides(self, image, text)
        image_embedding = None if image is None else self.embed_image(image)
        text_embedding = None if text is None else self.embed_text(text)
        if image is not None and text is not None:
            return Fused(*self.fuse(image, text), image_embedding, text_embedding)
        return Fused(*self.streams(image, text), None, image_embedding, text_embedding)

    def _enter_image(self, image: Tokens) -> Stream:
        if image.prefix != self.config.image_prefix:
            expected = f"Tokens with {self.config.image_prefix} prefix token(s)"
            fix = "Use the encoder and bank layout this fusion was made for."
            raise InputError(sentence("image", expected=expected, got=f"{image.prefix} prefix token(s)", fix=fix))
        values, valid = _kept(image)
        return self.image_project(self.image_standardise(values)) + self.image_type, valid

    def _enter_text(self, text: Tokens) -> Stream:
        values, valid = _kept(text)
        return self.text_project(self.text_standardise(values)) + self.text_type, valid

    def _embed_text(self, text: Tokens) -> Float[Tensor, "batch width"]:
        return functional.normalize(self.streams(text=text)[1].pooled, dim=-1)

    def _step(self, side: Side, number: int, own: Stream | None, other: Stream | None) -> Stream | None:
        """Pass a stream through one layer of its side; without a stream there is none afterwards."""
        if own is None:
            return None
        (x, valid), (context, context_valid) = own, other or (None, None)
        layers = self.image_layers if side == "image" else self.text_layers
        return layers[number](x, context, valid=valid, context_valid=context_valid), valid

    def _leave(self, side: Side, stream: Stream | None, source: Tokens | None) -> Tokens | None:
        """Pool a stream and put its tokens back to where they came from."""
        if stream is None or source is None:
            return None
        x, valid = stream
        values = restore(x, source.valid)
        if not self.reads_texts:
            pooled = masked_mean(values[:, source.prefix :], source.valid[:, source.prefix :])
            return Tokens(values, source.valid, pooled, source.grid, source.prefix)
        if source.grid is not None and not source.prefix:
            first = x.mean(1) if valid is None else masked_mean(x, valid)
        else:
            first = x[:, 0] if valid is None else x[:, 0].masked_fill(~valid[:, :1], 0.0)
        pool = self.image_pool if side == "image" else self.text_pool
        return Tokens(values, source.valid, pool(first).tanh(), source.grid, source.prefix)


def _layers(config: CoConfig) -> nn.ModuleList:
    crosses = config.text_width is not None
    return nn.ModuleList(
        CoBlock(config.width, config.heads, config.dropout, crosses=crosses) for _ in range(config.layers)
    )


def _start(module: nn.Module, *, width: int) -> None:
    """Start a dense layer as BERT does, N(0, 0.02) and no bias, and a narrower one so that it passes on as much."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02 * math.sqrt(768 / width))
        nn.init.zeros_(module.bias)


def _kept(tokens: Tokens) -> Stream:
    """The tokens to compute; whatever stands at padding, NaN included, is zero."""
    if bool(tokens.valid.all()):
        return tokens.values, None
    values, valid = compact(tokens.values, tokens.valid)
    if bool(valid.all()):  # as many tokens are hidden in every item
        return values, None
    return values.masked_fill(~valid[..., None], 0.0), valid
