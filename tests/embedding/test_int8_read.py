"""What reads a bank reads one of int8 too, to about the same end: probes, pre-training, masks of volumes."""

from dataclasses import replace

import numpy as np
import pytest

from adaptmed.adaptor.features import frozen_variants
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import read_metrics
from adaptmed.study.classification.arms import frozen_arm
from adaptmed.study.classification.rows import study_rows
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.study.segmentation.study import study_segmentation
from tests.masked_bank import M3AE, write_masked_banks
from tests.masked_images import QUICK, embed_table, save_encoders, write_volumes
from tests.short_training import METHOD

DTYPES = ("float16", "int8")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty labelled pairs with masked views, in both formats."""
    return {dtype: write_masked_banks(tmp_path_factory.mktemp(dtype), dtype=dtype)["views"] for dtype in DTYPES}


def test_a_probe_on_frozen_tokens_says_alike(pairs):
    features = {dtype: frozen_variants(bank, bank.subset(None)) for dtype, bank in pairs.items()}
    for name, exact in features["float16"].items():
        np.testing.assert_allclose(features["int8"][name], exact, atol=0.02 * np.abs(exact).max())
    found = {}
    for dtype, bank in pairs.items():
        rows = study_rows(bank)
        found[dtype] = frozen_arm(rows, bank)(np.arange(len(rows.train)), 0).probabilities
    np.testing.assert_allclose(found["int8"], found["float16"], atol=0.02)


@pytest.mark.parametrize("method", [METHOD, M3AE], ids=["adaptor", "m3ae"])
def test_pretraining_goes_the_same_way(pairs, method, tmp_path):
    last = {}
    for dtype, bank in pairs.items():
        pretrain(bank, method, tmp_path / dtype, device="cpu", precision="fp32")
        last[dtype] = read_metrics(tmp_path / dtype)[-1]
    names = [name for name, value in last["int8"].items() if "loss" in name and value is not None]
    assert names
    for name in names:
        assert last["int8"][name] == pytest.approx(last["float16"][name], rel=0.05)


def test_masks_of_volumes_are_learnt_from_codes_and_slices(tmp_path):
    encoders = save_encoders(tmp_path)
    table = write_volumes(tmp_path / "data")
    bank = embed_table(table, tmp_path / "data", tmp_path / "bank", encoders[0], dtype="int8")
    settings = SegmentationStudy(
        fractions=(1.0,), seeds=1, replicates=20, arms=("empty", "unet", "frozen"), training=replace(QUICK, steps=2)
    )
    results = study_segmentation([bank], [], tmp_path / "out", settings=settings, device="cpu")
    values = [row["value"] for row in results["summaries"] if row["metric"] == "dice"]
    assert {row["arm"] for row in results["summaries"]} == {"empty", "unet", "frozen"}
    assert np.isfinite(values).all()
