"""What each encoder gives is what its own library gives, and its facts are that library's facts."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP

from adaptmed.encoders import _open_clip, load_image_encoder, load_text_encoder
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.encoders._transformers import HFImageEncoder
from adaptmed.errors import InputError
from adaptmed.types import Preprocessing

PIXELS = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}


@pytest.fixture(scope="module")
def clip() -> CLIP:
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 160}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()


# --- timm


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "vit_base_patch16_siglip_224"])
def test_timm_transformers_give_timms_features_and_pooling(architecture: str) -> None:
    module = timm.create_model(architecture, **VIT)
    tokens = TimmImageEncoder(module, name="timm:tiny")(PIXELS)
    torch.testing.assert_close(tokens.values, module.forward_features(PIXELS))
    torch.testing.assert_close(tokens.pooled, module(PIXELS))


@pytest.mark.parametrize("architecture", ["test_efficientnet", "resnet10t", "test_convnext"])
def test_timm_cnns_give_the_last_feature_map_and_timms_pooling(architecture: str) -> None:
    module = timm.create_model(architecture, num_classes=0)
    tokens = TimmImageEncoder(module, name="timm:tiny")(PIXELS)
    torch.testing.assert_close(tokens.values.mT.unflatten(2, tokens.grid), module.forward_features(PIXELS))
    torch.testing.assert_close(tokens.pooled, module(PIXELS))


def test_a_head_of_another_width_leaves_the_mean_of_the_grid() -> None:
    module = timm.create_model("mobilenetv3_small_050", num_classes=0)
    tokens = TimmImageEncoder(module, name="timm:mobilenet")(PIXELS)
    assert module(PIXELS).shape[1] != tokens.pooled.shape[1]
    torch.testing.assert_close(tokens.pooled, tokens.values.mean(1))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", ((224, 224), (0.5,) * 3, "bicubic", 0.9, "crop")),
        ("vit_base_patch16_siglip_224.webli", ((224, 224), (0.5,) * 3, "bicubic", 0.9, "crop")),
        ("resnet50.a1_in1k", ((224, 224), (0.485, 0.456, 0.406), "bicubic", 0.95, "crop")),
        ("vit_base_patch14_reg4_dinov2.lvd142m", ((518, 518), (0.485, 0.456, 0.406), "bicubic", 1.0, "crop")),
    ],
)
def test_timm_facts_are_timms(architecture: str, expected: tuple[object, ...]) -> None:
    with torch.device("meta"):
        module = timm.create_model(architecture, num_classes=0)
    facts = TimmImageEncoder(module, name="timm:x").preprocessing
    assert (facts.image_size_px, facts.mean, facts.interpolation, facts.crop_fraction) == expected[:4]
    cfg = module.pretrained_cfg
    assert (facts.crop_fraction, facts.std) == (cfg["crop_pct"], cfg["std"])
    assert facts.fit == {"center": "crop", "squash": "squash", "border": "pad"}[cfg.get("crop_mode", "center")]


def test_the_image_size_changes_the_size_alone() -> None:
    module = timm.create_model("test_vit", **VIT)
    own, larger = (TimmImageEncoder(module, name="timm:x", image_size_px=size) for size in (None, 320))
    assert own.preprocessing.image_size_px == (160, 160)
    assert larger.preprocessing.image_size_px == (320, 320)
    assert larger.fingerprint() == own.fingerprint()
    before = own.fingerprint()
    assert larger(torch.zeros(1, 3, 320, 320)).grid == (20, 20)
    assert own.fingerprint() == before, "positions stay at their own size"


def test_timm_sizes_that_do_not_fit_raise() -> None:
    module = timm.create_model("test_vit", **VIT)
    with pytest.raises(InputError, match=r"`image_size_px`: .*nearest sizes are 160x160 and 176x176"):
        TimmImageEncoder(module, name="timm:x", image_size_px=170)
    with pytest.raises(InputError, match=r"`pixels`: .*nearest sizes are 160x64 and 176x64"):
        TimmImageEncoder(module, name="timm:x")(torch.zeros(1, 3, 170, 64))
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "num_classes": 0}
    swin = TimmImageEncoder(timm.create_model("swin_tiny_patch4_window7_224", **small), name="timm:swin")
    assert swin(torch.zeros(1, 3, 224, 224)).grid == (7, 7)
    with pytest.raises(InputError, match="224x224, the one size it takes"):
        swin(torch.zeros(1, 3, 256, 256))


def test_pointwise_roles_leave_depthwise_stem_and_gates_out() -> None:
    module = timm.create_model("test_efficientnet", num_classes=0)
    roles = TimmImageEncoder(module, name="timm:x").roles
    assert set(roles) == {"mlp"}
    assert set(roles["mlp"]) == {
        *("blocks.1.0.conv_pwl", "blocks.2.0.conv_pwl", "blocks.3.0.conv_pw", "blocks.3.0.conv_pwl"),
        *("blocks.4.0.conv_pw", "blocks.4.0.conv_pwl"),
    }


# --- open_clip


def test_the_image_tower_projects_to_clips_embedding(clip: CLIP) -> None:
    tokens = _open_clip.image_encoder(clip.visual, name="open_clip:x")(PIXELS)
    torch.testing.assert_close(tokens.pooled @ clip.visual.proj, clip.encode_image(PIXELS))
    clip.visual.output_tokens = True
    torch.testing.assert_close(tokens.values[:, 1:], clip.visual(PIXELS)[1])
    clip.visual.output_tokens = False


def test_open_clip_facts_are_the_towers(clip: CLIP) -> None:
    facts = _open_clip.image_encoder(clip.visual, name="open_clip:x").preprocessing
    assert (facts.image_size_px, facts.mean) == ((160, 160), open_clip.OPENAI_DATASET_MEAN)
    own = {
        "size": (160, 160),
        "mean": (0.5,) * 3,
        "std": (0.4,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    clip.visual.preprocess_cfg = own
    facts = _open_clip.image_encoder(clip.visual, name="open_clip:x", image_size_px=96).preprocessing
    assert facts == Preprocessing((96, 96), (0.5,) * 3, (0.4,) * 3, "bilinear", 1.0, "squash")
    del clip.visual.preprocess_cfg


def test_the_text_tower_projects_to_clips_embedding(clip: CLIP) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    encoder = _open_clip.text_encoder(_open_clip.text_tower(clip), tokenizer, name="open_clip:x")
    texts = ["!% no effusion", "small left nodule", "seen " * 40]
    ids = encoder.tokenize(texts)
    assert torch.equal(ids.input_ids, tokenizer(texts))
    assert ids.truncated.tolist() == [False, False, True]
    lengths = [min(len(tokenizer.encode(text)) + 2, 20) for text in texts]
    assert ids.valid.sum(1).tolist() == lengths, "padding is told by the end of text"
    assert (ids.input_ids[0, : lengths[0]] == 0).any(), "a word piece has the id of padding"
    tokens = encoder(ids.input_ids, ids.valid)
    torch.testing.assert_close(tokens.pooled @ clip.text_projection, clip.encode_text(tokenizer(texts)))


def test_attention_pooling_is_refused_in_words() -> None:
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32, "attentional_pool": True}
    visual = CLIP(24, {**vision, "attn_pooler_heads": 2}, {"width": 32, "heads": 2, "layers": 1}).visual
    with pytest.raises(InputError, match="patch tokens on a grid, but got attention pooling"):
        _open_clip.image_encoder(visual, name="open_clip:coca")
    with pytest.raises(InputError, match="a tower of a known kind, but got Linear"):
        _open_clip.image_encoder(torch.nn.Linear(1, 1), name="open_clip:x")


# --- transformers


def hf_vit(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=160, patch_size=16)
    transformers.ViTModel(config).save_pretrained(folder)
    facts = {"size": {"height": 160, "width": 160}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    own = {"image_processor_type": "ViTImageProcessor", "resample": 2, "do_normalize": True, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**facts, **own}))
    return folder


def test_a_vision_folder_gives_the_librarys_tokens_and_facts(tmp_path: Path) -> None:
    folder = hf_vit(tmp_path)
    encoder = load_image_encoder(f"hf:{folder}", image_size_px=320)
    assert encoder.preprocessing == Preprocessing((320, 320), (0.1, 0.2, 0.3), (0.5,) * 3, "bilinear", 1.0, "squash")
    tokens = encoder(PIXELS)
    module = transformers.ViTModel.from_pretrained(folder).eval()
    torch.testing.assert_close(tokens.values, module(PIXELS).last_hidden_state)
    torch.testing.assert_close(tokens.pooled, tokens.values[:, 0])
    assert (tokens.prefix, tokens.grid) == (1, (10, 10))
    assert load_image_encoder(f"hf:{folder}").fingerprint() == encoder.fingerprint(), "no random pooling layer"


def test_clips_vision_tokens_pass_the_final_norm() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    module = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=160, patch_size=16))
    facts = Preprocessing((160, 160), (0.5,) * 3, (0.5,) * 3)
    tokens = HFImageEncoder(module, name="hf:clip", preprocessing=facts)(PIXELS)
    torch.testing.assert_close(tokens.pooled, module(PIXELS).pooler_output)
    with pytest.raises(InputError, match="nearest sizes are 160x160 and 176x176"):
        HFImageEncoder(module, name="hf:clip", preprocessing=Preprocessing((170, 170), (0.5,) * 3, (0.5,) * 3))


def bert(folder: Path, **files: dict[str, object]) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, vocab_size=9, max_position_embeddings=24)
    transformers.BertForMaskedLM(config).half().save_pretrained(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "left", "seen", "a"])
    )
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    for name, facts in files.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(facts))
    return f"hf:{folder}"


def test_a_text_folder_gives_the_mean_over_valid_tokens(tmp_path: Path) -> None:
    encoder = load_text_encoder(bert(tmp_path))
    ids = encoder.tokenize(["no left", "seen"])
    module = transformers.BertModel.from_pretrained(tmp_path, dtype=torch.float32, add_pooling_layer=False).eval()
    own = transformers.AutoTokenizer.from_pretrained(tmp_path)(["no left", "seen"], padding=True, return_tensors="pt")
    assert torch.equal(own.input_ids, ids.input_ids)
    assert torch.equal(own.attention_mask.bool(), ids.valid)
    values = module(**own).last_hidden_state
    tokens = encoder(ids.input_ids, ids.valid)
    torch.testing.assert_close(tokens.values[tokens.valid], values[tokens.valid])
    torch.testing.assert_close(tokens.pooled[1], values[1, :3].mean(0))
    assert encoder.max_tokens == 24
    assert next(encoder.module.parameters()).dtype == torch.float32, "stored in fp16, used in fp32"
    assert load_text_encoder(f"hf:{tmp_path}").fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize(
    ("facts", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 32}, "cls"),
    ],
)
def test_a_sentence_transformers_folder_says_how_to_pool(tmp_path: Path, facts: dict, pooling: str) -> None:
    encoder = load_text_encoder(bert(tmp_path, **{"1_Pooling": facts}))
    ids = encoder.tokenize(["no left"])
    tokens = encoder(ids.input_ids, ids.valid)
    expected = tokens.values[:, 0] if pooling == "cls" else tokens.values.mean(1)
    torch.testing.assert_close(tokens.pooled, expected)


def test_a_pooling_we_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected mean or cls pooling, but got \['pooling_mode_max_tokens'\]"):
        load_text_encoder(bert(tmp_path, **{"1_Pooling": {"pooling_mode_max_tokens": True}}))


def test_weights_that_are_missing_are_never_random(tmp_path: Path) -> None:
    name = bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(
        InputError, match=r"all weights of the network, but got \d+ missing, for example encoder.layer.2"
    ):
        load_text_encoder(name)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    name = bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_text_encoder(name)
