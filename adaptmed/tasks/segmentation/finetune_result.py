"""What tuning for masks leaves behind: its result beside the prediction of nothing, the decoder, the adaptor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.cohort.division import Division
from adaptmed.cohort.rows import patients_of
from adaptmed.files import write_text_whole
from adaptmed.metrics.segmentation import over_patients
from adaptmed.runs.folder import read_metrics
from adaptmed.tasks.segmentation.decoder_file import DecoderFacts, save_decoder
from adaptmed.tasks.segmentation.judging import as_scores, score_model, score_nothing
from adaptmed.tasks.segmentation.masks import Masks
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.shapes import shape_for

RESULT = "metrics.json"


def result_of(
    model: Segmenter,
    reader: WindowReader,
    masks: Masks,
    rows: Division,
    settings: SegmentationSettings,
    out: Path,
    *,
    device: str,
) -> dict[str, Any]:
    """Judge the test masks, and say what was trained and which round was kept.

    Args:
        model: Tuned, in evaluation mode.
        reader: What it reads.
        masks: The truth.
        rows: Whom it was trained on and is judged by.
        settings: Of training.
        out: Run folder.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    bank, lines = masks.bank, read_metrics(out)
    kept = min(lines, key=lambda line: line.get("validate/loss", -line["step"]))
    result: dict[str, Any] = {
        "labels": list(masks.names),
        "train_images": len(rows.train),
        "train_patients": len(set(patients_of(bank, rows.train))),
        "rejected_masks": len(masks.rejects),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": rows.known,
        "trainable_parameters": trainable_parameters(model),
        "kept": {name: value for name, value in kept.items() if "/" in name or name in ("epoch", "step")},
        "test": None,
    }
    if len(rows.test):
        patients, places = patients_of(bank, rows.test), rows.test.tolist()
        tables = {
            "tuned": score_model(model, reader, masks, places, settings, device=device),
            "empty": score_nothing(masks, places),
        }
        result["test"] = {
            "images": len(places),
            "patients": len(set(patients)),
            "patients_seen_in_training": rows.overlap,
            **{arm: over_patients(as_scores(table), patients, names=masks.names) for arm, table in tables.items()},
        }
    return result


def save(
    adaptor: Adaptor,
    model: Segmenter,
    masks: Masks,
    settings: SegmentationSettings,
    result: Mapping[str, Any],
    out: Path,
) -> None:
    """Write the decoder, the adaptor and, as the sign that all is whole, the result."""
    images = masks.bank.info.images
    assert images is not None  # there are masks of them
    facts = DecoderFacts(
        config=shape_for(masks.bank, settings, fused_width=adaptor.fusion.width, classes=len(masks.labels)),
        labels=masks.labels,
        settings=settings,
        taps=model.taps,
        plane=images.plane,
        window=images.window,
    )
    save_decoder(out, model.decoder, facts)
    adaptor.eval().save_pretrained(out / "adaptor", metrics=_card(result), labels=masks.names)
    write_text_whole(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")


def _card(result: Mapping[str, Any]) -> dict[str, float | int | None]:
    """What the model card says: the mean over labels beside that of predicting nothing."""
    test = result["test"]
    if test is None:
        return dict(result["kept"])
    card = {"test images": test["images"], "test patients": test["patients"]}
    if test["patients_seen_in_training"]:
        card["test patients seen in training (the numbers are too good)"] = test["patients_seen_in_training"]
    whole = "macro" if len(result["labels"]) > 1 else result["labels"][0]
    for arm in ("tuned", "empty"):
        for row in test[arm]:
            if row["label"] == whole and row["metric"] in ("dice", "dice_positives"):
                card[f"test {row['metric']}, {arm}"] = row["value"]
    return card
