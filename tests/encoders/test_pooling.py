"""How texts are pooled: what the model's own files say, and never a guess where those files should be and are not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants

from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import InputError

MODULES = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
NAME, COMMIT = "clinic/reports", "5" * 40


@pytest.fixture
def cached(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a text model in a cache of its own, as one fetch by transformers leaves it."""
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(bert_folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def add_pooling(snapshot: Path, mode: str) -> None:
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}", "@main"])
def test_a_plain_model_in_the_cache_is_pooled_by_the_mean(cached: Path, revision: str) -> None:
    assert cached.is_dir()
    assert load_text_encoder(f"hf:{NAME}{revision}").pooling == "mean"


def test_a_sentence_model_in_the_cache_is_pooled_as_it_says(cached: Path) -> None:
    (cached / "modules.json").write_text(json.dumps(MODULES))
    add_pooling(cached, "cls_token")
    assert load_text_encoder(f"hf:{NAME}").pooling == "cls"


def test_a_sentence_model_without_its_pooling_file_in_the_cache_is_refused(cached: Path) -> None:
    (cached / "modules.json").write_text(json.dumps(MODULES))
    message = r"`hf:clinic/reports`: expected 1_Pooling/config\.json in the local cache.*Load it once with network"
    with pytest.raises(InputError, match=message):
        load_text_encoder(f"hf:{NAME}")


def test_a_pooling_file_that_the_repository_does_not_have_means_the_mean(cached: Path) -> None:
    (cached / "modules.json").write_text(json.dumps(MODULES))
    absent = cached.parents[1] / ".no_exist" / COMMIT / "1_Pooling"
    absent.mkdir(parents=True)
    (absent / "config.json").touch()
    assert load_text_encoder(f"hf:{NAME}").pooling == "mean"


def test_a_sentence_folder_without_its_pooling_file_is_refused(bert_folder: Path) -> None:
    (bert_folder / "modules.json").write_text(json.dumps(MODULES))
    with pytest.raises(InputError, match=r"1_Pooling/config\.json.*, but got no such file"):
        load_text_encoder(f"hf:{bert_folder}")


def test_texts_of_a_clip_model_take_its_text_tower(clip_folder: Path) -> None:
    encoder = load_text_encoder(f"hf:{clip_folder}")
    ids = encoder.tokenize(["no effusion seen", "small nodule"])
    tokens = encoder(ids.input_ids, ids.valid)
    tower = transformers.CLIPModel.from_pretrained(clip_folder).eval().text_model
    own = tower(input_ids=ids.input_ids, attention_mask=ids.valid.long())
    torch.testing.assert_close(tokens.pooled, own.pooler_output)
    ends = ids.valid.sum(1) - 1
    torch.testing.assert_close(tokens.pooled, tokens.values[torch.arange(2), ends])
    assert encoder.max_tokens == 24


def test_images_of_a_clip_model_take_its_vision_tower(clip_folder: Path) -> None:
    encoder = load_image_encoder(f"hf:{clip_folder}")
    assert encoder.module.config.model_type == "clip_vision_model"
    assert encoder(torch.zeros(1, 3, 112, 112)).grid == (7, 7)


def test_texts_of_another_model_with_images_point_to_open_clip(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text, vision = {**sizes, "vocab_size": 12}, {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"a text network or a CLIP model, but got SiglipModel\. Use `open_clip:`"):
        load_text_encoder(f"hf:{tmp_path}")
