"""Every kind of encoder, tiny with random weights, or bundled with real ones."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import timm
import torch
import transformers
from open_clip.hf_model import HFTextEncoder as HFTower
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from adaptmed.encoders import _open_clip, _transformers, load_image_encoder, load_text_encoder
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "no", "small", "large", "left", "right", "effusion", "nodule", "seen"]


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


PATCHES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 112, "patch_size": 16}


FACTS = Preprocessing((112, 112), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def timm_encoder(architecture: str, **options: object) -> TimmImageEncoder:
    module = timm.create_model(architecture, num_classes=0, **options)
    return TimmImageEncoder(module, name=f"timm:{architecture}", image_size_px=112)


def vit(architecture: str, **options: object) -> TimmImageEncoder:
    return timm_encoder(architecture, depth=4, embed_dim=32, num_heads=2, dynamic_img_size=True, **options)


def tiny_clip(vision: dict | None = None, text: dict | None = None, kind: type = CLIP) -> torch.nn.Module:
    vision = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 112} | (vision or {})
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 4} | (text or {})
    return kind(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()


def clip_image(**vision: object) -> ImageEncoder:
    visual = tiny_clip(vision).visual
    for layer in visual.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)  # an untrained ResNet closes its branches with zeros
    return _open_clip.image_encoder(visual, name="open_clip:tiny")


def clip_timm() -> ImageEncoder:
    tower = TimmModel("test_efficientnet", embed_dim=24, image_size=112)
    return _open_clip.image_encoder(tower, name="open_clip:timm")


def hf_image(config: transformers.PretrainedConfig) -> ImageEncoder:
    module = transformers.AutoModel.from_config(config)
    return _transformers.HFImageEncoder(module, name="hf:tiny", preprocessing=FACTS)


IMAGE: dict[str, Callable[[], ImageEncoder]] = {
    "timm-vit": lambda: vit("vit_tiny_patch16_224"),
    "timm-registers": lambda: vit("vit_small_patch14_reg4_dinov2"),
    "timm-map": lambda: vit("vit_base_patch16_siglip_224"),
    "timm-eva": lambda: vit("eva02_tiny_patch14_224"),
    "timm-efficientnet": lambda: timm_encoder("test_efficientnet"),
    "timm-resnet": lambda: timm_encoder("resnet10t"),
    "timm-convnext": lambda: timm_encoder("test_convnext"),
    "timm-channels-last": lambda: timm_encoder("test_mambaout"),
    "clip-vit": clip_image,
    "clip-resnet": lambda: clip_image(layers=(1, 1, 1, 1), width=8),
    "clip-timm": clip_timm,
    "hf-vit": lambda: hf_image(transformers.ViTConfig(**PATCHES, intermediate_size=64)),
    "hf-dinov2": lambda: hf_image(transformers.Dinov2Config(**PATCHES)),
    "hf-registers": lambda: hf_image(transformers.Dinov2WithRegistersConfig(**PATCHES)),
    "hf-clip": lambda: hf_image(transformers.CLIPVisionConfig(**PATCHES, intermediate_size=64)),
    "hf-siglip": lambda: hf_image(transformers.SiglipVisionConfig(**PATCHES, intermediate_size=64)),
    "hf-convnext": lambda: hf_image(transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
    "hf-resnet": lambda: hf_image(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1])
    ),
    "bundled-dinov2": lambda: load_image_encoder("bundled:dinov2-small"),
    "bundled-lite0": lambda: load_image_encoder("bundled:efficientnet-lite0"),
}


def tokenizer(pad: str = "[PAD]") -> transformers.PreTrainedTokenizerFast:
    words = [pad, *[word for word in WORDS if word != pad]]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    names = {"unk_token": "[UNK]", "pad_token": pad, "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_text_model(folder: Path, config: transformers.PretrainedConfig, *, half: bool = False) -> Path:
    module = transformers.AutoModel.from_config(config)
    (module.half() if half else module).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_clip_model(folder: Path) -> Path:
    """A whole CLIP with a tokenizer whose end of text is not id 2, which transformers reads as the highest id."""
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 24}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**PATCHES, "intermediate_size": 64}
    config = transformers.CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer("[UNK]").save_pretrained(folder)
    facts = {"size": {"shortest_edge": 112}, "crop_size": 112, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    own = {"image_processor_type": "CLIPImageProcessor", "resample": 3, "do_normalize": True, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**facts, **own}))
    return folder


def bert_config(**options: object) -> transformers.PretrainedConfig:
    return transformers.BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=24, **options)


def roberta_config() -> transformers.PretrainedConfig:
    return transformers.RobertaConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=26, pad_token_id=0)


def distilbert_config() -> transformers.PretrainedConfig:
    sizes = {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 24}
    return transformers.DistilBertConfig(**sizes, vocab_size=len(WORDS))


def hf_text(config: transformers.PretrainedConfig, folder: Path) -> TextEncoder:
    return load_text_encoder(f"hf:{save_text_model(folder, config)}")


def clip_text(_folder: Path, kind: type = CLIP, **text: object) -> TextEncoder:
    tower = _open_clip.text_tower(tiny_clip(text=text, kind=kind))
    return _open_clip.text_encoder(tower, open_clip.SimpleTokenizer(context_length=20), name="open_clip:tiny")


class WordTokenizer:
    """What open_clip's own wrapper of Hugging Face tokenizers offers, around the tiny tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.context_length = 20

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": context_length}
        return self.tokenizer(texts, return_tensors="pt", **options).input_ids


def clip_bidirectional(_folder: Path) -> TextEncoder:
    text = {"no_causal_mask": True, "pool_type": "last", "vocab_size": len(WORDS)}
    tower = tiny_clip(text=text, kind=CustomTextCLIP).text
    return _open_clip.text_encoder(tower, WordTokenizer(), name="open_clip:siglip")


def clip_hf(_folder: Path) -> TextEncoder:
    tower = HFTower("bert", 24, config=bert_config(), pooler_type="cls_last_hidden_state_pooler", proj_type="linear")
    return _open_clip.text_encoder(tower, WordTokenizer(), name="open_clip:hf")


TEXT: dict[str, Callable[[Path], TextEncoder]] = {
    "hf-bert": lambda folder: hf_text(bert_config(), folder),
    "hf-roberta": lambda folder: hf_text(roberta_config(), folder),
    "hf-distilbert": lambda folder: hf_text(distilbert_config(), folder),
    "hf-clip-text": lambda folder: load_text_encoder(f"hf:{save_clip_model(folder)}"),
    "clip-text": clip_text,
    "clip-custom": lambda folder: clip_text(folder, kind=CustomTextCLIP),
    "clip-coca": lambda folder: clip_text(folder, kind=CustomTextCLIP, embed_cls=True),
    "clip-bidirectional": clip_bidirectional,
    "clip-hf": clip_hf,
    "bundled-minilm": lambda _folder: load_text_encoder("bundled:minilm-l6"),
}
