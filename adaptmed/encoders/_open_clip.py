"""The door to open_clip: both towers of one CLIP model."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, MeanPooler
from open_clip.hf_model import HFTextEncoder as HFTower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmed.encoders import base
from adaptmed.encoders._pooling import Pooling
from adaptmed.encoders._timm import TimmImageEncoder, pointwise
from adaptmed.encoders._transformers import HFTextEncoder
from adaptmed.errors import InputError, sentence
from adaptmed.types import Fit, ImageEncoder, Preprocessing, Role, TextEncoder, TokenIds, Tokens

_FIT: Mapping[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


class OpenClipImageEncoder(base.FrozenEncoder):
    """The native vision transformer of a CLIP model.

    Tokens: CLS and patch tokens after the final norm. ``pooled`` is what the model pools (CLS or the patches' mean)
    **before** its projection into the shared space, because Tokens have one width; the projected embedding is
    ``pooled @ encoder.module.proj``. Positions stay at their own size and are interpolated in the forward pass the way
    open_clip resizes them when loading: bicubic with antialiasing.

    Args:
        module: ``model.visual`` of an open_clip model.
        name: The full name it is loaded by.
        image_size_px: Side of the square input, default the model's own.

    Raises:
        InputError: A size that is no multiple of the patch, or a tower that pools by attention (CoCa), whose tokens
            have no grid.
    """

    def __init__(self, module: VisionTransformer, *, name: str, image_size_px: int | None = None) -> None:
        super().__init__(module, name)
        if module.attn_pool is not None:
            fix = "Use a CLIP model whose tower pools by CLS or mean."
            raise InputError(sentence(name, expected="patch tokens on a grid", got="attention pooling", fix=fix))
        self.width, patch = int(module.class_embedding.shape[0]), module.patch_size
        self.entrance = base.Entrance("ln_pre", 1, (patch[0], patch[1]))
        self.preprocessing = base.resized(_preprocessing(module), image_size_px)
        self.roles = _roles(module)
        base.check_size(self.preprocessing.image_size_px, module.patch_size, "image_size_px")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual attention blocks."""
        return list(cast(Any, self.module).transformer.resblocks)

    def forward(self, pixels: Float[Tensor, "batch 3 height width_px"]) -> Tokens:
        """Encode normalised pixels."""
        tower: Any = self.module
        grid = base.check_pixels(pixels, tower.patch_size)
        positions = base.interpolate_positions(tower.positional_embedding, tower.grid_size, grid)
        patches = tower.conv1(pixels).flatten(2).transpose(1, 2)
        cls = tower.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        hidden = tower.ln_pre(torch.cat([cls, patches], dim=1) + positions.to(patches.dtype))
        hidden = tower.transformer(hidden)
        values = tower.ln_post(hidden)
        if tower.pool_type == "tok":
            pooled = values[:, 0]
        elif tower.final_ln_after_pool:
            pooled = tower.ln_post(hidden[:, 1:].mean(1))
        else:
            pooled = values[:, 1:].mean(1)
        return base.image_tokens(values, pooled, grid, 1)

    def taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int = 4) -> base.Maps:
        """Return the feature maps after ``count`` evenly spaced blocks, shallow to deep, before the final norm."""
        return base.recorded_taps(self, pixels, count)[1]

    tokens_and_taps = base.recorded_taps


class OpenClipResNetEncoder(base.FrozenEncoder):
    """The modified ResNet of OpenAI's CLIP.

    Tokens: the last feature map, row by row. ``pooled`` is their mean: CLIP's own attention pooling ends in the
    projected width and takes one image size only. Any image size of at least 32 px works.

    Args:
        module: ``model.visual`` of an open_clip model.
        name: The full name it is loaded by.
        image_size_px: Side of the square input, default the model's own.
    """

    def __init__(self, module: ModifiedResNet, *, name: str, image_size_px: int | None = None) -> None:
        super().__init__(module, name)
        self.width = int(module.attnpool.k_proj.in_features)
        self.preprocessing = base.resized(_preprocessing(module), image_size_px)
        self.roles: Mapping[Role, tuple[str, ...]] = {"mlp": pointwise(module, self.blocks)}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The four stages."""
        tower: Any = self.module
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4]

    def forward(self, pixels: Float[Tensor, "batch 3 height width_px"]) -> Tokens:
        """Encode normalised pixels."""
        return self.tokens_and_taps(pixels, 1)[0]

    def taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int = 4) -> base.Maps:
        """Return the feature maps of the last ``count`` stages, each half the size of the one before."""
        return self.tokens_and_taps(pixels, count)[1]

    def tokens_and_taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int) -> tuple[Tokens, base.Maps]:
        """Return the Tokens and ``count`` taps of one forward pass; the Tokens are the deepest tap, row by row."""
        base.check_pixels(pixels)
        base.tap_indices(len(self.blocks), count)
        tower: Any = self.module
        maps = list(tower.forward_intermediates(pixels, indices=count, intermediates_only=True)["image_intermediates"])
        values = maps[-1].flatten(2).transpose(1, 2)
        return base.image_tokens(values, values.mean(1), (maps[-1].shape[2], maps[-1].shape[3]), 0), maps


class OpenClipTextEncoder(base.FrozenEncoder):
    """The native text transformer of a CLIP model, with its tokenizer.

    Tokens: word tokens after the final norm. ``pooled`` is the token the model pools (CLIP: end of text) **before** the
    projection into the shared space, because Tokens have one width. Texts always run at the model's full context
    length, as it was trained: some towers (SigLIP) attend to padding and read the last position.

    Args:
        module: ``model.text`` of an open_clip model, or what :func:`text_tower` makes of a plain ``CLIP``.
        tokenizer: The model's tokenizer.
        name: The full name it is loaded by.
    """

    def __init__(self, module: TextTransformer, tokenizer: Any, *, name: str) -> None:
        super().__init__(module, name)
        self.tokenizer = tokenizer
        self.width = int(module.positional_embedding.shape[1])
        self.max_tokens = int(module.context_length)
        self.roles = _roles(module)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual attention blocks."""
        return list(cast(Any, self.module).transformer.resblocks)

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> TokenIds:
        """Turn texts into word ids, base.padded to the longest text of this call; longer texts keep their end-of-text.

        Raises:
            InputError: No texts, an item that is no string, or ``max_tokens`` beyond the context length.
        """
        limit = base.token_limit(texts, self.max_tokens, max_tokens)
        too_long = [len(row) > limit for row in self._rows(texts, limit + 1)]
        return base.padded(self._rows(texts, limit), too_long, self._pad_id)

    def forward(self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"]) -> Tokens:
        """Encode word ids; ids at padding are not looked at."""
        tower: Any = self.module
        length = input_ids.shape[1]
        ids = input_ids.masked_fill(~valid, self._pad_id)
        ids = F.pad(ids, (0, self.max_tokens - length), value=self._pad_id)
        wanted = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        output = tower.forward_intermediates(ids, **wanted, output_fmt="NLC", output_extra_tokens=True)
        values = output["text_intermediates"][0]
        if "text_intermediates_suffix" in output:  # CoCa appends a class token
            pooled = output["text_intermediates_suffix"][0][:, 0]
        else:
            pooled = text_global_pool(values, ids, tower.pool_type, eos_token_id=tower.eos_id)
        return Tokens(values[:, :length], valid, pooled)

    def taps(
        self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"], count: int = 4
    ) -> list[Float[Tensor, "batch token width"]]:
        """Return the token features after ``count`` evenly spaced blocks, shallow to deep, before the final norm."""
        return base.text_taps(self, input_ids, valid, count)

    def _rows(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Return word ids without padding. CLIP pads with 0, which is also a word, so its end is the end-of-text."""
        ids = self.tokenizer(list(texts), context_length=limit)
        end = getattr(self.tokenizer, "eot_token_id", None)
        if end is not None:
            lengths = (ids == end).int().argmax(1) + 1
        else:
            own = self.tokenizer.tokenizer
            lengths = (ids != self._pad_id).sum(1) + int(own.pad_token_id == own.eos_token_id)
            lengths = lengths.clamp(1, limit)
        return [row[:length].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]

    @property
    def _pad_id(self) -> int:
        own = getattr(self.tokenizer, "tokenizer", None)
        return 0 if own is None else int(own.pad_token_id)


def text_tower(model: nn.Module) -> nn.Module:
    """Return the text tower of an open_clip model; a plain ``CLIP`` keeps its parts loose, they are gathered here."""
    if hasattr(model, "text"):
        return cast(nn.Module, model.text)
    clip: Any = model
    sizes = {
        "context_length": clip.context_length,
        "width": clip.transformer.width,
        "vocab_size": 1,
        "output_dim": None,
    }
    tower = TextTransformer(**sizes, heads=1, layers=1, pool_type=clip.text_pool_type, eos_id=clip.text_eos_id)
    for part in ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "attn_mask"):
        setattr(tower, part, getattr(clip, part))
    return tower


def image_encoder(visual: nn.Module, *, name: str, image_size_px: int | None = None) -> ImageEncoder:
    """Wrap the vision tower of an open_clip model by its kind: native transformer, modified ResNet, or timm's."""
    if isinstance(visual, VisionTransformer):
        return OpenClipImageEncoder(visual, name=name, image_size_px=image_size_px)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNetEncoder(visual, name=name, image_size_px=image_size_px)
    if isinstance(visual, TimmModel):
        facts = _preprocessing(visual)
        return TimmImageEncoder(visual.trunk, name=name, image_size_px=image_size_px, preprocessing=facts)
    raise _unknown_tower(name, visual)


def text_encoder(text: nn.Module, tokenizer: Any, *, name: str) -> TextEncoder:
    """Wrap the text tower of an open_clip model by its kind: native transformer, or one of Hugging Face."""
    if isinstance(text, TextTransformer):
        return OpenClipTextEncoder(text, tokenizer, name=name)
    if not isinstance(text, HFTower):
        raise _unknown_tower(name, text)
    poolings: dict[type[nn.Module], Pooling] = {
        MeanPooler: "mean",
        ClsLastHiddenStatePooler: "cls",
        ClsPooler: "pooler",
    }
    pooling, limit = poolings.get(type(text.pooler)), tokenizer.context_length
    if pooling is None:
        raise _unknown_tower(name, text.pooler)
    return HFTextEncoder(text.transformer, tokenizer.tokenizer, name=name, pooling=pooling, max_tokens=limit)


def load_image_encoder(model: str, image_size_px: int | None) -> ImageEncoder:
    """Load the vision tower of ``ARCH/PRETRAINED`` or ``hf-hub:ORG/NAME``."""
    name = f"open_clip:{model}"
    with base.fetching(name):
        loaded = _load(model)
    return image_encoder(loaded.visual, name=name, image_size_px=image_size_px)


def load_text_encoder(model: str) -> TextEncoder:
    """Load the text tower of ``ARCH/PRETRAINED`` or ``hf-hub:ORG/NAME`` with its tokenizer."""
    name = f"open_clip:{model}"
    with base.fetching(name):
        loaded = _load(model)
        tokenizer = open_clip.get_tokenizer(_architecture(model)[0])
    return text_encoder(text_tower(loaded), tokenizer, name=name)


def _load(model: str) -> Any:
    architecture, pretrained = _architecture(model)
    return open_clip.create_model(architecture, pretrained, require_pretrained=True, weights_only=True)


def _architecture(model: str) -> tuple[str, str | None]:
    if model.startswith("hf-hub:"):
        return model, None
    architecture, _, pretrained = model.partition("/")
    if (architecture, pretrained) not in open_clip.list_pretrained():
        tags = [tag for known, tag in open_clip.list_pretrained() if known == architecture]
        fix = f"For {architecture} there are {', '.join(tags)}." if tags else "See open_clip.list_pretrained()."
        raise InputError(sentence("name", expected="ARCH/PRETRAINED that open_clip knows", got=repr(model), fix=fix))
    return architecture, pretrained


def _roles(module: nn.Module) -> Mapping[Role, tuple[str, ...]]:
    return {"attention": base.kept(module, ("attn",)), "mlp": base.kept(module, ("mlp.c_fc", "mlp.c_proj"))}


def _preprocessing(visual: nn.Module) -> Preprocessing:
    facts = merge_preprocess_dict(PreprocessCfg(), open_clip.get_model_preprocess_cfg(visual))
    size = facts["size"]
    return Preprocessing(
        image_size_px=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation=facts["interpolation"],
        fit=_FIT[facts["resize_mode"]],
    )


def _unknown_tower(name: str, tower: nn.Module) -> InputError:
    fix = "Use another model of open_clip, or the same network through `timm:` or `hf:`."
    return InputError(sentence(name, expected="a tower of a known kind", got=type(tower).__name__, fix=fix))
