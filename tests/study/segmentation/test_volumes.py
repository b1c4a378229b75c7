"""A study on volumes: every arm is trained on windows of slices and judged on whole volumes, in millimetres."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from adaptmed.embedding.embed import embed
from adaptmed.errors import InputError
from adaptmed.metrics.segmentation import METRICS
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.segmentation.settings import ARMS, SegmentationStudy
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from tests.masked_pictures import METHOD_SHORT
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_manifest, make_table
from tests.volume_files import write_nifti

DEPTHS = (5, 3, 6, 4, 5, 2)
VOLUMES = replace(EXACT, taps=3)
TRAINING = SegmentationSettings(
    steps=2, validations=1, batch_size=4, window_slices=3, channels=4, learning_rate=0.01, precision="fp32"
)
STUDY = SegmentationStudy(fractions=(0.5, 1.0), seeds=1, replicates=20, training=TRAINING, labels={1: "cube"})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six volumes, the last two to test; the cube is missing from the first of these."""
    folder, generator, rows = tmp_path_factory.mktemp("volumes"), np.random.default_rng(5), []
    for number, depth in enumerate(DEPTHS):
        values = generator.integers(-100, 100, (24, 20, depth)).astype(np.int16)
        mask = np.zeros(values.shape, dtype=np.uint8)
        if number != 4:
            mask[6:14, 6:14, : depth - 1], values[6:14, 6:14, : depth - 1] = 1, 400
        write_nifti(folder / f"{number}.nii", values)
        write_nifti(folder / f"m{number}.nii", mask)
        rows.append({"image": f"{number}.nii", "mask": f"m{number}.nii", "text": "a cube", "patient": number})
    table = pd.DataFrame(rows)
    table["split"] = ["train"] * 4 + ["test"] * 2
    return make_manifest(folder, table)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An adaptor of the same encoder, pre-trained on pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    table = make_table(folder, rows=12).assign(split="train", text="a small left effusion")
    bank = embed(make_manifest(folder, table), PatchEncoder(), WordEncoder(), folder / "bank", options=EXACT)
    pretrain(bank, METHOD_SHORT, folder / "run", device="cpu")
    return folder / "run"


def test_every_arm_runs_on_volumes(manifest, run, tmp_path):
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=VOLUMES)
    results = study_segmentation([bank], [run], tmp_path / "out", settings=STUDY, device="cpu")
    rows = results["summaries"]
    assert {(row["arm"], row["fraction"]) for row in rows} == {(arm, f) for arm in ARMS for f in (0.5, 1.0)}
    assert {row["metric"] for row in rows} == set(METRICS)
    found = {(row["arm"], row["metric"]): row["value"] for row in rows if row["label"] == "cube"}
    assert found["empty", "dice"] == 0.5
    assert found["empty", "dice_positives"] == 0.0
    assert {row["n_test"] for row in rows} == {2}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 2 * 6  # two volumes: the image, the truth and the four trained arms


def test_volumes_without_pixels_run_what_needs_none(manifest, tmp_path):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=replace(VOLUMES, pixels=False))
    settings = replace(STUDY, training=replace(TRAINING, decoder="dpt"), fractions=(1.0,))
    with pytest.raises(InputError, match="pixels of its volumes, which the arm unet reads, but got none"):
        study_segmentation([bank], [], tmp_path / "out", settings=settings, device="cpu")
    assert not (tmp_path / "out").exists()
    alone = replace(settings, arms=("empty", "frozen"))
    results = study_segmentation([bank], [], tmp_path / "out", settings=alone, device="cpu")
    assert {row["arm"] for row in results["records"]} == {"empty", "frozen"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png" not in page
    assert "no test image is shown, because the bank holds no pixels of its volumes" in page
