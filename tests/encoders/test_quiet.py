"""Loading an encoder prints nothing of transformers, and leaves its switches as they were."""

import pytest
from transformers import BertConfig, BertModel
from transformers.utils import logging

from adaptmed.encoders._quiet import quiet
from adaptmed.encoders._transformers import _pretrained


def test_loading_weights_without_a_pooler_prints_nothing(tmp_path, capfd) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=16, **sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    capfd.readouterr()
    _pretrained(str(tmp_path), {})
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("bar", [True, False])
def test_the_switches_are_as_they_were(bar: bool) -> None:
    verbosity, before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if bar else logging.disable_progress_bar)()
    try:
        with quiet():
            assert not logging.is_progress_bar_enabled()
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bar)
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
