"""The door to Hugging Face transformers: text and image networks, safetensors weights only."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from adaptmed.encoders import base
from adaptmed.encoders._pooling import Pooling, pooling_of
from adaptmed.encoders._quiet import quiet
from adaptmed.errors import InputError, sentence
from adaptmed.types import Fit, Preprocessing, Role, TokenIds, Tokens

_ATTENTION = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    *("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("attn.Wqkv", "attn.Wo"),
)
_MLP = ("intermediate.dense", "ffn.lin1", "ffn.lin2", "mlp.fc1", "mlp.fc2", "mlp.Wi", "mlp.Wo", "pwconv1", "pwconv2")
_DROPPING = ("vit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")
_INTERPOLATE = "interpolate_pos_encoding"
_FILTER: Mapping[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class HFTextEncoder(base.FrozenEncoder):
    """A bidirectional text network of transformers (BERT, RoBERTa, DistilBERT, ELECTRA, ...), or CLIP's text tower.

    Tokens: the last hidden states. ``pooled`` is the mean over valid tokens, or what a sentence-transformers folder
    says (mean or the first token); of CLIP the token at the end of the text, after the final norm.

    Args:
        module: The network without its task head.
        tokenizer: Its tokenizer.
        name: The full name it is loaded by.
        pooling: ``mean`` over valid tokens, ``cls`` (the first token) or ``pooler`` (the network's own pooling layer).
        max_tokens: The longest input, default what tokenizer and position table allow (RoBERTa: two less than its
            configuration says, because positions start after the padding index).
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any, *, name: str, pooling: Pooling = "mean", max_tokens: int | None = None
    ) -> None:
        super().__init__(module, name)
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.width: int = module.config.hidden_size  # type: ignore[assignment, union-attr]
        limit = min(tokenizer.model_max_length, _position_limit(module))  # 1e30 means that the tokenizer does not know
        self.max_tokens = int(limit if max_tokens is None else min(limit, max_tokens))
        self.roles = _roles(module)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's layers."""
        return _blocks(self.module)

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> TokenIds:
        """Turn texts into word ids with the model's special tokens, base.padded to the longest text of this call.

        Args:
            texts: One or more strings; the empty string gives the special tokens alone.
            max_tokens: Longer texts lose their end (special tokens stay) and are marked; default the encoder's limit.

        Raises:
            InputError: No texts, an item that is no string, or ``max_tokens`` beyond the encoder's limit.
        """
        limit = base.token_limit(texts, self.max_tokens, max_tokens)
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        truncated = [len(row) > limit for row in rows]
        if any(truncated):
            rows = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return base.padded(rows, truncated, _pad_id(self.tokenizer))

    def forward(self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"]) -> Tokens:
        """Encode word ids; ids at padding are not looked at. Every text counts as the first segment."""
        ids = input_ids.masked_fill(~valid, _pad_id(self.tokenizer))
        output = self.module(input_ids=ids, attention_mask=valid.long())
        values = output.last_hidden_state
        if self.pooling == "mean":
            weight = valid.unsqueeze(-1).to(values.dtype)
            pooled = (values * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            pooled = values[:, 0] if self.pooling == "cls" else output.pooler_output
        return Tokens(values, valid, pooled)

    def taps(
        self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"], count: int = 4
    ) -> list[Float[Tensor, "batch token width"]]:
        """Return the token features after ``count`` evenly spaced layers, shallow to deep."""
        return base.text_taps(self, input_ids, valid, count)


class HFImageEncoder(base.FrozenEncoder):
    """An image network of transformers: ViT, DINOv2, CLIP and SigLIP vision towers, ConvNeXt, ResNet.

    Tokens: patch tokens after the final norm with CLS and registers as prefix, or a CNN's last feature map row by row.
    ``pooled`` is the CLS token after the final norm (never ViT's extra pooling layer, which checkpoints often lack), or
    the network's own pooling where there is no CLS. Positions are interpolated in the forward pass as transformers
    does it: bicubic without antialiasing.

    Args:
        module: The network without its task head.
        name: The full name it is loaded by.
        preprocessing: Its input facts.

    Raises:
        InputError: A size that is no multiple of the patch.
    """

    def __init__(self, module: nn.Module, *, name: str, preprocessing: Preprocessing) -> None:
        super().__init__(module, name)
        config: Any = module.config
        self.preprocessing = preprocessing
        patch = getattr(config, "patch_size", 1) if hasattr(config, "num_attention_heads") else 1
        self._patch: tuple[int, int] = (patch, patch)
        self._prefix = _prefix(module)
        if config.model_type in _DROPPING:
            self.entrance = base.Entrance("embeddings", self._prefix, self._patch)
        self._interpolation = {_INTERPOLATE: True} if _INTERPOLATE in signature(module.forward).parameters else {}
        self.width: int = config.hidden_size if patch > 1 else config.hidden_sizes[-1]
        self.roles = _roles(module)
        base.check_size(preprocessing.image_size_px, self._patch, "image_size_px")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's layers, or the CNN's stages."""
        return _blocks(self.module)

    def forward(self, pixels: Float[Tensor, "batch 3 height width_px"]) -> Tokens:
        """Encode normalised pixels."""
        grid = base.check_pixels(pixels, self._patch)
        return self._tokens(self.module(pixel_values=pixels, **self._interpolation), grid)

    def _tokens(self, output: Any, grid: tuple[int, int]) -> Tokens:
        """Arrange what the network gave, ``grid`` being that of a transformer."""
        values = output.last_hidden_state
        if values.ndim == 4:
            grid = (values.shape[2], values.shape[3])
            values = values.flatten(2).transpose(1, 2)
        elif self.module.config.model_type == "clip_vision_model":  # type: ignore[union-attr]
            values = self.module.post_layernorm(values)  # type: ignore[operator]
        pooled = values[:, 0] if self._prefix else output.pooler_output.flatten(1)
        return base.image_tokens(values, pooled, grid, self._prefix)

    def taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int = 4) -> base.Maps:
        """Return ``count`` feature maps, shallow to deep: evenly spaced layers, or the last stages of a CNN."""
        return self.tokens_and_taps(pixels, count)[1]

    def tokens_and_taps(self, pixels: Float[Tensor, "batch 3 height width_px"], count: int) -> tuple[Tokens, base.Maps]:
        """Return the Tokens and ``count`` taps of one forward pass."""
        if self._patch != (1, 1):
            return base.recorded_taps(self, pixels, count)
        size_px = base.check_pixels(pixels)
        base.tap_indices(len(self.blocks), count)
        output = self.module(pixel_values=pixels, output_hidden_states=True)
        return self._tokens(output, size_px), list(output.hidden_states[-count:])


def load_text_encoder(model: str, *, name: str | None = None) -> HFTextEncoder:
    """Load ``ORG/NAME[@revision]`` or a local folder, under its own name or another; of a CLIP model its text tower."""
    source, options = _locate(model)
    with base.fetching(f"hf:{model}"):
        module = _without_pooler(_text_tower(_pretrained(source, options), f"hf:{model}"))
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        pooling = "pooler" if _is_clip_text(module) else pooling_of(source, options.get("revision"))
    return HFTextEncoder(module, tokenizer, name=name or f"hf:{model}", pooling=pooling)


def load_image_encoder(model: str, image_size_px: int | None) -> HFImageEncoder:
    """Load ``ORG/NAME[@revision]`` or a local folder; of a CLIP model its vision tower."""
    source, options = _locate(model)
    with base.fetching(f"hf:{model}"):
        loaded = _pretrained(source, options)
        module = _without_pooler(getattr(loaded, "vision_model", loaded))
        facts = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **options)
    preprocessing = base.resized(_preprocessing(facts, f"hf:{model}"), image_size_px)
    return HFImageEncoder(module, name=f"hf:{model}", preprocessing=preprocessing)


def _locate(model: str) -> tuple[str, dict[str, str]]:
    """Split a name into what ``from_pretrained`` takes: a folder, or a repository with its revision."""
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser()), {}
    if model.startswith((".", "/", "~")):
        fix = "Give the folder that holds config.json and model.safetensors."
        raise InputError(sentence(f"hf:{model}", expected="an existing folder", got="no such folder", fix=fix))
    repository, _, revision = model.partition("@")
    return repository, {"revision": revision} if revision else {}


@quiet()
def _pretrained(source: str, options: dict[str, str]) -> nn.Module:
    """Load a network from safetensors in fp32; attention is sdpa wherever the family has it (transformers' default).

    Raises:
        InputError: The file lacks weights of the network, which would then be random.
    """
    safe = {"use_safetensors": True, "trust_remote_code": False}
    module: nn.Module
    module, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **safe, **options)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        got, fix = f"{len(missing)} missing, for example {missing[0]}", "Use a checkpoint of this very architecture."
        raise InputError(sentence(source, expected="all weights of the network", got=got, fix=fix))
    return module


def _text_tower(module: nn.Module, name: str) -> nn.Module:
    """Return a text network as it is, and of a CLIP model its text tower.

    Raises:
        InputError: A model with images whose text tower pools in another way than CLIP's.
    """
    if not hasattr(module, "vision_model"):
        return module
    tower = getattr(module, "text_model", None)
    if isinstance(tower, nn.Module) and _is_clip_text(tower):
        return tower
    fix = "Use `open_clip:` for its text tower."
    raise InputError(sentence(name, expected="a text network or a CLIP model", got=type(module).__name__, fix=fix))


def _is_clip_text(module: nn.Module) -> bool:
    return module.config.model_type == "clip_text_model"  # type: ignore[union-attr]


def _without_pooler(module: nn.Module) -> nn.Module:
    """Drop the dense pooling layer: many checkpoints lack it, and random weights would change every fingerprint."""
    if isinstance(getattr(getattr(module, "pooler", None), "dense", None), nn.Linear):
        module.pooler = None  # type: ignore[assignment]
    return module


def _position_limit(module: nn.Module) -> int:
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return int(module.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def _pad_id(tokenizer: Any) -> int:
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _roles(module: nn.Module) -> Mapping[Role, tuple[str, ...]]:
    attention, mlp = base.kept(module, _ATTENTION), base.kept(module, _MLP)
    if "intermediate.dense" in mlp:  # BERT: `output.dense` alone would also name the attention's
        names = [name for name, _ in module.named_modules() if name.endswith(".output.dense")]
        mlp += tuple(name for name in names if not name.endswith(".attention.output.dense"))
    roles: dict[Role, tuple[str, ...]] = {"attention": attention, "mlp": mlp}
    return {role: names for role, names in roles.items() if names}


def _blocks(module: nn.Module) -> Sequence[nn.Module]:
    """Return the longest list of equal rank: ``encoder.layer``, ``transformer.layer``, ``layers`` or ``stages``."""
    for path in ("encoder.layer", "encoder.layers", "transformer.layer", "layers", "encoder.stages"):
        holder, _, attribute = path.rpartition(".")
        found = getattr(getattr(module, holder, None) if holder else module, attribute, None)
        if isinstance(found, nn.ModuleList):
            return list(found)
    fix = "Use another source, or a network of BERT, RoBERTa, DistilBERT, ViT, DINOv2, CLIP, ConvNeXt or ResNet."
    expected = "a family with a known list of blocks"
    raise InputError(sentence(type(module).__name__, expected=expected, got="none", fix=fix))


def _prefix(module: nn.Module) -> int:
    embeddings = getattr(module, "embeddings", None)
    has_cls = hasattr(embeddings, "cls_token") or hasattr(embeddings, "class_embedding")
    return int(has_cls) + int(getattr(module.config, "num_register_tokens", 0))


def _preprocessing(processor: Any, name: str) -> Preprocessing:
    """Read the facts of an image processor; centre crop, or squash where there is none."""
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    edge = int(size.get("shortest_edge") or size.get("height") or 0)
    if not edge or processor.resample not in _FILTER:
        fix = "Use `timm:` or `open_clip:` for this network."
        raise InputError(sentence(name, expected="a size and a known filter", got=f"size {size}", fix=fix))
    cropped = bool(crop) and bool(getattr(processor, "do_center_crop", False))
    target = crop if cropped else size
    height, width = int(target.get("height", edge)), int(target.get("width", edge))
    fit: Fit = "crop" if cropped or "shortest_edge" in size else "squash"
    crop_fraction = height / edge if cropped else 1.0
    if getattr(processor, "crop_pct", None):  # ConvNeXt crops below 384 px and squashes from there on
        fit, crop_fraction = ("crop", processor.crop_pct) if edge < 384 else ("squash", 1.0)
    return Preprocessing(
        image_size_px=(height, width),
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        interpolation=_FILTER[int(processor.resample)],
        crop_fraction=crop_fraction,
        fit=fit,
    )
