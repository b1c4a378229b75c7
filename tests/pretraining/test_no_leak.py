"""Law 14: what is to be predicted cannot be read from what the model is given, when it is hidden before the encoder."""

import math

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier

from adaptmed.encoders import load_text_encoder, words_of
from adaptmed.pretext.masking import Vocabulary, mask_words

WORDS = ["apple", "river", "stone", "cloud", "table", "green", "seven", "horse", "paper", "light"]


def read_linearly(values, answers):
    """Held-out accuracy of a linear model, and the half width of its 95 % interval."""
    half = len(values) // 2
    model = RidgeClassifier(alpha=100.0).fit(values[:half], answers[:half])
    accuracy = float(np.mean(model.predict(values[half:]) == answers[half:]))
    return accuracy, 1.96 * math.sqrt(0.25 / half)


def test_a_word_hidden_before_its_encoder_is_read_at_chance_and_one_hidden_behind_it_is_read():
    encoder = load_text_encoder("bundled:minilm-l6")
    drawn = np.random.default_rng(3).integers(len(WORDS), size=(700, 8))
    given = encoder.tokenize([" ".join(WORDS[word] for word in sentence) for sentence in drawn])
    words = words_of(encoder)
    vocabulary = Vocabulary.of(words.entries, special_ids=words.special_ids, mask_id=words.mask_id)
    ids, targets = mask_words(given.input_ids, given.valid, vocabulary, items=torch.arange(700), seed=1)
    hidden = (targets >= 0) & (ids == words.mask_id)  # words that were left as they are can be read, on purpose
    item, place = hidden.nonzero().unbind(1)
    answers = given.input_ids[item, place].numpy()
    with torch.inference_mode():
        before, behind = (encoder(some, given.valid).values for some in (ids, given.input_ids))
    accuracy, half_width = read_linearly(before[item].flatten(1).numpy(), answers)
    assert len(item) > 450
    assert abs(accuracy - 1 / len(WORDS)) < half_width
    row = torch.arange(len(item))
    beside = torch.cat([behind[item][row, place - 1], behind[item][row, place + 1]], dim=1)
    leaked, _ = read_linearly(beside.numpy(), answers)
    assert leaked > 3 / len(WORDS)
