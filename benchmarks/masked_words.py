"""Whether masked pre-training reads the image: hidden finding words beside the right image and beside another's.

Run: python benchmarks/masked_words.py [RUN BANK]
RUN is a run folder of `adaptmed pretrain --method umd` (or m3ae), BANK a bank of the phantom's reports by the same
encoders; by default those that `python benchmarks/answering.py` leaves in runs/bench/answering-2025. In every test
report one word that says side, zone or severity is replaced by [MASK] before the text encoder.
Bar: accuracy with the right image - accuracy with the image of another patient: interval above 0, over patients.
Beside it, law 14: a word of random-word sentences, read by a linear model from what the text encoder gives when the
word is hidden before it (bar: chance lies in the interval), and when it is hidden behind it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from adaptmed import Adaptor, Bank, load_text_encoder
from adaptmed.bank.layout import Layout, arrange_text
from adaptmed.encoders import words_of
from adaptmed.fusion import CoFusion
from adaptmed.layers.draws import item_draws
from adaptmed.metrics.uncertainty import interval, patient_weights
from adaptmed.pretext.word import TiedWordHead
from adaptmed.pretraining.pretext import load_pretext
from adaptmed.tasks.pairs.reading import exchanged
from adaptmed.types import TextEncoder

SAID = "left right upper mid lower small tiny minor subtle moderate large big marked pronounced mild slight borderline"
RANDOM_WORDS = "apple river stone cloud table green seven horse paper light music water chair bread glass night"


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/bench/answering-2025/umd-0"))
    parser.add_argument("bank", type=Path, nargs="?", default=Path("runs/bench/answering-2025/reports"))
    arguments = parser.parse_args()
    bank, adaptor = Bank.open(arguments.bank), Adaptor.from_pretrained(arguments.run, load_encoders=False)
    encoder = adaptor.encoders.load_text()
    assert encoder is not None
    head = TiedWordHead(adaptor.width, words_of(encoder).embeddings)
    load_pretext(arguments.run, nn.ModuleDict({"words": head}))
    rows = bank.subset("test")
    patients = bank.rows["patient"].astype(str).to_numpy()[rows]
    right = {
        "right image": _right(adaptor, encoder, head, bank, rows, rows),
        "another's image": _right(adaptor, encoder, head, bank, rows, rows[exchanged(patients, seed=0)]),
    }
    asked = right["right image"] >= 0
    weights = np.vstack([np.ones((1, asked.sum())), patient_weights(patients[asked], replicates=2000)])
    scores = {name: (weights @ found[asked]) / weights.sum(1) for name, found in right.items()}
    scores["difference"] = scores["right image"] - scores["another's image"]
    print(f"{asked.sum()} test reports of {len(set(patients[asked]))} patients, one finding word hidden in each")
    for name, values in scores.items():
        low, high = interval(values[1:]) or (float("nan"),) * 2
        print(f"  {name:16s} {values[0]:.3f} [{low:.3f}, {high:.3f}]")
    _law_14(load_text_encoder("bundled:minilm-l6"))


@torch.inference_mode()
def _right(
    adaptor: Adaptor, encoder: TextEncoder, head: nn.Module, bank: Bank, rows: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """Of every report whether its hidden word was found: 1 or 0, and -1 where it has no finding word."""
    entries = words_of(encoder).entries
    said = torch.tensor([entry in SAID.split() for entry in entries])
    mask_id = words_of(encoder).mask_id
    layout, fusion, found = Layout.parse(bank.info.layout), adaptor.fusion, []
    assert isinstance(fusion, CoFusion)
    for start in range(0, len(rows), 64):
        batch, shown = bank.batch(rows[start : start + 64], torch.float32), images[start : start + 64]
        assert batch.input_ids is not None
        assert batch.ids_valid is not None
        ids = batch.input_ids.long()
        candidate = said[ids] & batch.ids_valid
        draws = item_draws(batch.rows, ids.shape[1], seed=0).masked_fill(~candidate, -1.0)
        place, item = draws.argmax(1), torch.arange(len(ids))
        hidden = ids.clone()
        hidden[item, place] = torch.where(candidate.any(1), mask_id or 0, ids[item, place])
        text = arrange_text(encoder(hidden, batch.ids_valid), layout)
        fused = fusion.streams(bank.image_tokens(shown, torch.float32), text)[1]
        assert fused is not None
        guess = head(fused.values[item, place]).argmax(1)
        found.append(torch.where(candidate.any(1), (guess == ids[item, place]).long(), -1))
    return torch.cat(found).numpy()


def _law_14(encoder: TextEncoder) -> None:
    """Print how well a linear model reads the fourth of eight random words, for both ways of hiding it."""
    random_words = RANDOM_WORDS.split()
    drawn = np.random.default_rng(0).integers(len(random_words), size=(4000, 8))
    ids = encoder.tokenize([" ".join(random_words[word] for word in sentence) for sentence in drawn])
    place = 4  # behind [CLS]
    hidden = ids.input_ids.clone()
    hidden[:, place] = words_of(encoder).mask_id or 0
    print(f"law 14: {len(random_words)} random words, chance {1 / len(random_words):.3f}")
    for name, given in (("before the encoder", hidden), ("behind the encoder", ids.input_ids)):
        values = _encoded(encoder, given, ids.valid)
        values = values[:, [p for p in range(values.shape[1]) if name.startswith("before") or p != place]]
        train, test = slice(0, 3000), slice(3000, None)
        flat = values.flatten(1).numpy()
        model = LogisticRegression(C=0.01, max_iter=200).fit(flat[train], drawn[train, place - 1])
        right = model.predict(flat[test]) == drawn[test, place - 1]
        low, high = interval((patient_weights(np.arange(len(right))) * right).mean(1)) or (float("nan"),) * 2
        print(f"  hidden {name}: read with accuracy {right.mean():.3f} [{low:.3f}, {high:.3f}]")


@torch.inference_mode()
def _encoded(encoder: TextEncoder, ids: Tensor, valid: Tensor) -> Tensor:
    parts = zip(torch.split(ids, 250), torch.split(valid, 250), strict=True)
    return torch.cat([encoder(some, seen).values for some, seen in parts])


if __name__ == "__main__":
    main()
