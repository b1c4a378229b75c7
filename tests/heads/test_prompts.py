import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from adaptmed.errors import InputError
from adaptmed.heads.prompts import (
    class_prompts_for,
    label_directions,
    load_prompts,
    prompt_embedding,
    prompts_for,
    zero_shot_multiclass,
    zero_shot_multilabel,
)


@given(st.from_regex(r"[a-z]+(_[a-z]+)*", fullmatch=True))
def test_generic_prompts_are_sentences_about_the_label(label):
    positive, negative = prompts_for(label)
    assert len(positive) == len(negative)
    assert not set(positive) & set(negative)
    for text in (*positive, *negative, *class_prompts_for(label)):
        assert label.replace("_", " ") in text.lower()
        assert text[0].isupper()
        assert text.endswith(".")
    assert all("no " in text.lower() for text in negative)


def test_a_file_replaces_one_side_and_leaves_the_other(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"edema": {"positive": ["Wet lungs."]}}))
    prompts = load_prompts(path)
    assert prompts_for("edema", prompts) == (("Wet lungs.",), prompts_for("edema")[1])
    assert prompts_for("mass", prompts) == prompts_for("mass")
    assert class_prompts_for("edema", prompts) == ("Wet lungs.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "got list"),
        ('{"a": {"positive": []}}', "`.*prompts.json, a`"),
        ('{"a": {"positive": ["x"], "neutral": ["y"]}}', "neutral"),
        ('{"a": {"positive": "x"}}', "texts in lists"),
        ('{"a": {"negative": ["x"]}}', "`.*prompts.json, a`"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_prompts(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_prompts(tmp_path / "none.json")


def test_prompt_embedding_is_the_direction_of_the_mean():
    found = prompt_embedding(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


def test_multilabel_is_a_softmax_over_each_pair():
    images, positive, negative = (functional.normalize(torch.randn(n, 5), dim=-1) for n in (4, 3, 3))
    pairs = torch.stack([images @ positive.T, images @ negative.T], dim=-1)
    expected = torch.softmax(pairs / 0.1, dim=-1)[..., 0]
    torch.testing.assert_close(zero_shot_multilabel(images, positive, negative, 0.1), expected)
    swapped = zero_shot_multilabel(images, negative, positive, 0.1)
    torch.testing.assert_close(swapped, 1 - expected)
    logits = images @ label_directions(positive, negative).T
    torch.testing.assert_close(torch.logit(expected.double(), eps=1e-12).float(), logits / 0.1, atol=1e-3, rtol=1e-3)


def test_multiclass_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = zero_shot_multiclass(images, images, temperature=0.5)
    high = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(found, torch.tensor([[high, 1 - high], [1 - high, high]]))
