"""How well a pre-trained run finds texts by images and images by texts, by embedding and by re-ranking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from adaptmed.adaptor.features import embed_rows
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import require_unseen
from adaptmed.cohort.rows import pairs_of, patients_of
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.metrics.retrieval import (
    chance_recall,
    first_places,
    first_positive_ranks,
    weighted_median_rank,
    weighted_recall,
)
from adaptmed.metrics.uncertainty import entry, patient_weights
from adaptmed.pretext.matching import MatchingHead
from adaptmed.pretraining.choices import from_json
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.pretext import has_matching, load_matching
from adaptmed.runs.folder import read_config, read_seen
from adaptmed.runs.lineage import Lineage
from adaptmed.runs.precision import Precision
from adaptmed.runs.processes import device_of
from adaptmed.runs.same_tokens import check_tokens, require_texts
from adaptmed.tasks.result import test_counts
from adaptmed.tasks.retrieval.reranking import pair_logits_both_ways, reranked_ranks
from adaptmed.tasks.retrieval.sets import retrieve

KS = (1, 5, 10)
PRETRAINED = ("pretrain", "calibrate")
_REPLICATES = 1000
_CHANCE = "expected of a random order, which has no interval"


@dataclass(frozen=True)
class _Way:
    """One direction of retrieval: who asks, what is looked through, and how often each query counts."""

    name: str
    queries: Float[np.ndarray, "n width"]
    gallery: Float[np.ndarray, "m width"]
    asked: Int[np.ndarray, " n"]
    there: Int[np.ndarray, " m"]
    weights: Float[np.ndarray, "replicate n"]

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.queries, self.gallery, self.asked, self.there

    def right(self, first: Int[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
        return self.there[first] == self.asked[:, None]


def judge_retrieval(
    run: Path,
    bank: Bank,
    *,
    top_k: int = 16,
    most: int = 2000,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    allow_overlap: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge retrieval on the test pairs of a bank, both ways, with intervals over the patients that ask.

    Every image asks for its text among the distinct texts, and every distinct text for its images. By embedding the
    two sides never met; re-ranking fuses the first ``top_k`` candidates with the query, pair by pair, and sorts them by
    the matching head. The gallery is held fixed in the bootstrap.

    Args:
        run: Run folder of ``adaptmed pretrain``, or of a calibration.
        bank: Tokens of the same encoders, with a test split of pairs.
        top_k: Candidates of each query that are read as pairs; 1 changes nothing.
        most: Pairs that are judged; of more, so many are drawn.
        seed: Of that draw.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of the forward passes.
        allow_overlap: Go on although test patients were seen; the result says so.
        progress: Show a progress bar while pairs are fused.

    Returns:
        JSON values. Under ``test`` counts, and the scores of ``embedding``, ``reranked`` and ``chance`` by direction
        (``image to text``, ``text to image``): ``R@1``, ``R@5``, ``R@10`` and ``median_rank``, each a value with
        ``ci_low`` and ``ci_high`` (95 %). ``within_top_k`` is the most that re-ranking could reach, ``gain`` what it
        adds to each recall, paired over the same queries. ``reranked`` holds a ``reason`` alone where the run has no
        matching head. ``notes`` are sentences that belong beside the numbers.

    Raises:
        InputError: The run is no finished pre-training or reads images alone, the bank has Tokens of other encoders or
            no test pair, or a number is too low.
        OverlapError: Test patients were seen.
    """
    for name, value, least in (("top_k", top_k, 1), ("most", most, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(sentence(name, expected=f"at least {least}", got=value, fix="Raise it."))
    command, method = _method_of(run)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    require_texts(adaptor, run)
    check_tokens(bank, adaptor, run)
    every = _test_pairs(bank)
    seen, before = read_seen(run), Lineage.of_bank(bank.folder)
    overlap = require_unseen(bank, every, {*(seen or ()), *before.patients}, allow_overlap=allow_overlap)
    rows = every
    if len(every) > most:
        rows = np.sort(np.random.default_rng(seed).choice(every, most, replace=False))
    where = device_of(device)
    fusion = adaptor.fusion.to(where)
    head = load_matching(run, 2 * fusion.width).to(where) if has_matching(run) else None
    with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
        scores = _scores(fusion, head, bank, rows, top_k=top_k, progress=progress)
    if head is None:
        scores["reranked"] = {"reason": _without_head(method)}
    return {
        "task": "retrieval",
        "run": str(run.resolve()),
        "bank": str(bank.folder.resolve()),
        "method": method.name,
        "top_k": top_k,
        "most": most,
        "seed": seed,
        "precision": precision,
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": seen is not None,
        "notes": _notes(command, method, matched=head is not None),
        "test": test_counts(bank, rows, noun="pairs", overlap=overlap) | {"pairs_of_split": len(every)} | scores,
    }


def _method_of(run: Path) -> tuple[str, Method]:
    """What has trained a run: the command, and its method."""
    config = read_config(run) or {}
    command = config.get("command", "none")
    if command not in PRETRAINED or not (run / "adaptor").exists():
        expected = "a finished run folder of `adaptmed pretrain` or of a calibration"
        got = f"a run of `adaptmed {command}`" if config else "no run of adaptmed"
        if command in PRETRAINED:
            got = "one that has not ended, or the adaptor inside"
        raise InputError(sentence(str(run), expected=expected, got=got, fix="Name its run folder."))
    return command, from_json(config["method"])


def _test_pairs(bank: Bank) -> Int[np.ndarray, " n"]:
    rows = pairs_of(bank, "test")
    if not len(rows):
        expected, fix = "a test pair to judge", "Give a bank whose table has image-text pairs in a test split."
        raise InputError(sentence(str(bank.folder), expected=expected, got="none", fix=fix))
    return rows


def _scores(
    fusion: Fusion,
    head: MatchingHead | None,
    bank: Bank,
    rows: Int[np.ndarray, " n"],
    *,
    top_k: int,
    progress: bool,
) -> dict[str, Any]:
    ways, text_rows = _ways(fusion, bank, rows)
    ranks = [first_positive_ranks(*way.sides) for way in ways]
    found: dict[str, Any] = {
        "queries": {way.name: {"n_queries": len(way.asked), "n_gallery": len(way.there)} for way in ways},
        "embedding": {way.name: _judged(r, way.weights) for way, r in zip(ways, ranks, strict=True)},
        "chance": {way.name: _chance(way) for way in ways},
    }
    if head is None:
        return found
    texts, images = (first_places(*way.sides, k=top_k) for way in ways)
    logits = pair_logits_both_ways(fusion, head, bank, (rows, text_rows), (texts, images), progress=progress)
    found["reranked"] = {
        way.name: _judged_again(way, before, reranked_ranks(before, way.right(first), answers), first.shape[1])
        for way, before, first, answers in zip(ways, ranks, (texts, images), logits, strict=True)
    }
    return found


def _ways(
    fusion: Fusion, bank: Bank, rows: Int[np.ndarray, " n"]
) -> tuple[tuple[_Way, _Way], Int[np.ndarray, " text"]]:
    """Both directions, and a row of every distinct text."""
    images, texts = (embed_rows(fusion, bank, rows, modality=side) for side in ("image", "text"))
    groups = bank.rows["text_index"].to_numpy(np.int64)[rows]
    sets = retrieve(images, texts, torch.from_numpy(groups))
    text_rows = rows[np.unique(groups, return_index=True)[1]]
    by_image, by_text = _weights(bank, rows), _weights(bank, text_rows)
    return (
        _Way("image to text", sets.images, sets.texts, sets.image_group, sets.text_group, by_image),
        _Way("text to image", sets.texts, sets.images, sets.text_group, sets.image_group, by_text),
    ), text_rows


def _weights(bank: Bank, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "replicate n"]:
    return np.vstack([np.ones((1, len(rows))), patient_weights(patients_of(bank, rows), replicates=_REPLICATES)])


def _judged(ranks: Int[np.ndarray, " n"], weights: Float[np.ndarray, "replicate n"]) -> dict[str, Any]:
    found = {f"R@{k}": entry(weighted_recall(ranks, weights, k=k), None) for k in KS}
    return found | {"median_rank": entry(weighted_median_rank(ranks, weights), None)}


def _judged_again(way: _Way, before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"], top_k: int) -> dict[str, Any]:
    """Score the new places, the share of queries that could be helped, and what is gained over the old ones."""
    gain = {
        f"R@{k}": entry(weighted_recall(after, way.weights, k=k) - weighted_recall(before, way.weights, k=k), None)
        for k in KS
    }
    within = entry(weighted_recall(before, way.weights, k=top_k), None)
    return _judged(after, way.weights) | {"within_top_k": within, "gain": gain}


def _chance(way: _Way) -> dict[str, Any]:
    positives = (way.asked[:, None] == way.there).sum(axis=1)
    values = {f"R@{k}": chance_recall(positives, len(way.there), k=k).mean() for k in KS}
    values["median_rank"] = np.median((len(way.there) + 1) / (positives + 1))
    return {
        name: {"value": float(value), "ci_low": None, "ci_high": None, "reason": _CHANCE}
        for name, value in values.items()
    }


def _without_head(method: Method) -> str:
    if method.term("matching") is None:
        return f"the method {method.name} was trained without matching: its weight is 0"
    return "the run folder holds no matching head: a version that did not keep it has trained it"


def _notes(command: str, method: Method, *, matched: bool) -> list[str]:
    """What a reader must know of the numbers that they do not say themselves."""
    found = []
    if method.term("contrastive") is None:
        trained = "only the matching head was trained to" if matched else "nothing was trained to"
        found.append(
            f"The method {method.name} does not contrast images with texts: {trained} tell which belong together, and "
            "the embeddings, which choose the candidates, are weak."
        )
    if command == "calibrate" and matched:
        found.append("The matching head is that of the run before calibration; the fusion under it has moved since.")
    return found
