"""The door to timm: vision transformers and CNNs."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from jaxtyping import Float
from timm.layers import PatchDropoutWithIndices, PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adaptmed.encoders.base import (
    Entrance,
    FrozenEncoder,
    Maps,
    check_pixels,
    check_size,
    fetching,
    image_tokens,
    kept,
    recorded_taps,
    resized,
)
from adaptmed.errors import InputError, sentence
from adaptmed.types import Fit, Preprocessing, Role, Tokens

_FIT: Mapping[str, Fit] = {"center": "crop", "squash": "squash", "border": "pad"}
_ATTENTION = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj")
_MLP = ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2", "mlp.w12", "mlp.w3")


class TimmImageEncoder(FrozenEncoder):
    """A timm vision transformer or CNN.

    Tokens: a transformer's prefix and patch tokens after its final norm; a CNN's last feature map, row by row.
    ``pooled`` is timm's own pooling before the classifier (DINOv2: the CLS token), and the mean of the grid tokens
    where timm's pooling ends in another width than the feature map's (MobileNetV3's head).

    Position embeddings stay in the module at the size they were trained at. At another size timm interpolates them in
    the forward pass: bicubic **with** antialiasing. DINOv2's own code and transformers do so without antialiasing, so
    tokens at other sizes than 518 px differ from theirs a little; ours are equal for every source of the same weights.
    Networks that timm builds for one size only (Swin, Mixer) take that size.

    Args:
        module: A timm model; built with ``num_classes=0, dynamic_img_size=True`` it takes any multiple of its patch.
        name: The full name it is loaded by.
        image_size_px: Side of the square input, default the model's own.
        preprocessing: Its facts where timm does not hold them (towers of other libraries).

    Raises:
        InputError: A size that the network cannot take, naming those next to it; a resampling filter we lack.

    Example:
        >>> import timm, torch
        >>> module = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
        >>> TimmImageEncoder(module, name="timm:test_vit")(torch.zeros(2, 3, 64, 96)).grid
        (4, 6)
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        image_size_px: int | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(module, name)
        self.width: int = module.num_features  # type: ignore[assignment]
        self.preprocessing = resized(preprocessing or _preprocessing(module, name), image_size_px)
        self.roles = _roles(module)
        self.entrance = _entrance(module)
        _check_size(module, self.preprocessing.image_size_px, "image_size_px")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, or the CNN's stages."""
        return _blocks(self.module)

    def forward(self, pixels: Float[Tensor, "batch 3 height width_px"]) -> Tokens:
        """Encode normalised pixels."""
        grid = self._grid(pixels)
        return self._tokens(self.module.forward_features(pixels), grid)  # type: ignore[operator]

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        check_pixels(pixels)
        return _check_size(self.module, (pixels.shape[2], pixels.shape[3]), "pixels")

    def _tokens(self, features: Tensor, grid: tuple[int, int]) -> Tokens:
        """Arrange timm's last features, ``grid`` being that of a transformer without a map."""
        prefix = 0
        if features.ndim == 3:
            values, prefix = features, int(getattr(self.module, "num_prefix_tokens", 0))
        else:
            features_last = features if _channels_last(self.module) else features.permute(0, 2, 3, 1)
            grid = (features_last.shape[1], features_last.shape[2])
            values = features_last.flatten(1, 2)
        pooled = self.module.forward_head(features, pre_logits=True)  # type: ignore[operator]
        if pooled.shape != (values.shape[0], self.width):
            pooled = values[:, prefix:].mean(1)
        return image_tokens(values, pooled, grid, prefix)

    def taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int = 4) -> Maps:
        """Return ``count`` feature maps, shallow to deep.

        Of a transformer: evenly spaced blocks, all of one size, before the final norm. Of a CNN or a hierarchical
        transformer: its last ``count`` resolutions, each half of the one before.
        """
        return self.tokens_and_taps(pixels, count)[1]

    def tokens_and_taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int) -> tuple[Tokens, Maps]:
        """Return the Tokens and ``count`` taps of one forward pass."""
        if hasattr(self.module, "num_prefix_tokens"):
            return recorded_taps(self, pixels, count)
        levels = len(self.module.feature_info)  # type: ignore[arg-type]
        if not 1 <= count <= levels:
            expected = f"between 1 and {levels} (the resolutions there are)"
            raise InputError(sentence("count", expected=expected, got=count, fix="Ask for fewer taps."))
        grid = self._grid(pixels)
        features, maps = self.module.forward_intermediates(pixels, indices=count)  # type: ignore[operator]
        return self._tokens(features, grid), list(maps)


def load_image_encoder(model: str, image_size_px: int | None) -> TimmImageEncoder:
    """Load ``NAME[@revision]`` or ``hf-hub:ORG/NAME[@revision]`` with its pretrained weights."""
    name = f"timm:{model}"
    architecture, _, revision = model.partition("@")
    if architecture.startswith("hf-hub:"):
        with fetching(name):
            return TimmImageEncoder(build(model, pretrained=True), name=name, image_size_px=image_size_px)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture.partition(".")[0], timm.list_models(), n=3)
        fix = f"Did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists them."
        raise InputError(sentence("name", expected="a model that timm knows", got=repr(architecture), fix=fix))
    overlay = {}
    if revision:
        overlay = {"hf_hub_id": f"{timm.models.get_pretrained_cfg(architecture).hf_hub_id}@{revision}"}
    with fetching(name):
        module = build(architecture, pretrained=True, pretrained_cfg_overlay=overlay)
    return TimmImageEncoder(module, name=name, image_size_px=image_size_px)


def build(architecture: str, *, num_classes: int = 0, **options: object) -> nn.Module:
    """Build a timm model that takes images of any size where its family can, by default without classifier."""
    try:
        return timm.create_model(architecture, num_classes=num_classes, dynamic_img_size=True, **options)
    except TypeError:  # CNNs take any size as they are, and their builders do not know the option
        return timm.create_model(architecture, num_classes=num_classes, **options)


def pointwise(module: nn.Module, blocks: Sequence[nn.Module]) -> tuple[str, ...]:
    """Return the full names of the 1x1 convolutions inside ``blocks``, squeeze-and-excitation gates left out."""
    inside = {part for block in blocks for part in block.modules()}
    return tuple(
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d)
        and part in inside
        and part.kernel_size == (1, 1)
        and part.groups == 1
        and ".se." not in name
    )


def _roles(module: nn.Module) -> Mapping[Role, tuple[str, ...]]:
    attention = tuple(name for name in kept(module, _ATTENTION) if name != "attn.qkv" or _qkv_is_called(module))
    roles: dict[Role, tuple[str, ...]] = {"attention": attention, "mlp": kept(module, _MLP)}
    if not roles["mlp"]:
        roles["mlp"] = pointwise(module, _blocks(module))
    return {role: names for role, names in roles.items() if names}


def _qkv_is_called(module: nn.Module) -> bool:
    """Whether ``attn.qkv`` is called as a layer; EVA and BEiT take its weight beside biases of their own instead."""
    attentions = [part for part in module.modules() if hasattr(part, "qkv")]
    return all(
        getattr(part, "q_bias", None) is None or getattr(part, "qkv_bias_separate", False) for part in attentions
    )


def _entrance(module: nn.Module) -> Entrance | None:
    """Return where timm itself drops patches; ``None`` where a patch has seen its neighbours before that (hybrids)."""
    if not isinstance(module, VisionTransformer | Eva) or not isinstance(module.patch_embed, PatchEmbed):
        return None
    if module.patch_drop is None:  # EVA: its rotary positions follow the places that this module names
        module.patch_drop = PatchDropoutWithIndices(0.0)
    patch = module.patch_embed.patch_size
    return Entrance("patch_drop", int(module.num_prefix_tokens), (patch[0], patch[1]))


def _blocks(module: nn.Module) -> Sequence[nn.Module]:
    for attribute in ("blocks", "stages", "layers", "features"):
        found = getattr(module, attribute, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return list(found)
    return [part for name, part in module.named_children() if name.startswith("layer")]


def _check_size(module: nn.Module, size_px: tuple[int, int], argument: str) -> tuple[int, int]:
    """Return the grid of patches for ``size_px``; ``size_px`` itself for networks without patches."""
    patch_embed: Any = getattr(module, "patch_embed", None)
    own = getattr(patch_embed, "img_size", None)
    if own is None:
        return check_size(size_px, (1, 1), argument)
    if patch_embed.strict_img_size and tuple(own) != size_px:
        fix = "This network cannot interpolate its positions; use that size."
        expected, got = f"{own[0]}x{own[1]}, the one size it takes", f"{size_px[0]}x{size_px[1]}"
        raise InputError(sentence(argument, expected=expected, got=got, fix=fix))
    return check_size(size_px, patch_embed.patch_size, argument)


def _channels_last(module: nn.Module) -> bool:
    return str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC")


def _preprocessing(module: nn.Module, name: str) -> Preprocessing:
    facts = timm.data.resolve_model_data_config(module)
    built_for = getattr(getattr(module, "patch_embed", None), "img_size", None) or facts["input_size"][1:]
    if facts["interpolation"] not in ("bicubic", "bilinear", "nearest"):
        fix = "Pass `preprocessing=` with the filter to use."
        raise InputError(sentence(name, expected="a known resampling filter", got=facts["interpolation"], fix=fix))
    return Preprocessing(
        image_size_px=(built_for[0], built_for[1]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation=facts["interpolation"],
        crop_fraction=facts["crop_pct"],
        fit=_FIT[facts["crop_mode"]],
    )
