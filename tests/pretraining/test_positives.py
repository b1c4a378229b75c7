"""Which pairs of a batch are positives of each other: equal reports, or all reports of a patient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed import methods
from adaptmed.cohort.rows import pairs_of
from adaptmed.objectives.contrastive import info_nce
from adaptmed.pretraining.job import PretrainJob, fresh_adaptor
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.pretraining.terms.contrastive import Contrastive, contrastive_loss
from adaptmed.runs.folder import read_metrics
from tests.short_training import METHOD
from tests.tiny_bank import write_tiny_bank

PATIENTS = methods.changed(METHOD, {"contrastive": {"positives": "same-patient"}})


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank")


def test_reports_of_a_patient_are_positives_of_each_other(bank):
    train = pairs_of(bank, "train")
    fusion = fresh_adaptor(bank, METHOD, train, seed=0).fusion.eval()
    names = bank.rows["patient"].astype(str).to_numpy()[train]
    groups = torch.from_numpy(np.unique(names, return_inverse=True)[1])
    assert len(set(groups.tolist())) < len(train)
    batch = replace(bank.batch(train, torch.float32), patient_group=groups)
    with torch.inference_mode():
        found = contrastive_loss(fusion, batch, Contrastive(positives="same-patient"), seed=0)
        sides = fusion.embed_image(batch.image), fusion.embed_text(batch.text)
        expected = info_nce(*sides, scale=fusion.scale(), text_group=groups)
        plain = contrastive_loss(fusion, batch, Contrastive(), seed=0)
        without = replace(batch, text_group=batch.text_group.index_fill(0, torch.tensor([0]), -1))
        fewer = contrastive_loss(fusion, without, Contrastive(positives="same-patient"), seed=0)
    assert found.item() == pytest.approx(expected.item())
    assert found.item() != pytest.approx(plain.item(), rel=1e-3)
    assert fewer.item() != pytest.approx(found.item(), rel=1e-6)  # a pair without a text is left out


def test_batches_say_whose_pairs_they_hold_only_where_that_is_asked(bank):
    for method, asked in ((PATIENTS, True), (METHOD, False)):
        job = PretrainJob(bank, method, pairs_of(bank, "train"), pairs_of(bank, "validate"), seed=0)
        trained, _ = job.batches(8, slice(None), lambda: 0)
        for batch in trained:
            assert (batch.patient_group is not None) == asked
            if asked:
                names = bank.rows["patient"].to_numpy()[batch.rows.numpy()]
                same = batch.patient_group[:, None] == batch.patient_group[None]
                np.testing.assert_array_equal(same.numpy(), names[:, None] == names[None])


def test_a_run_with_patients_trains_and_says_so(bank, tmp_path):
    pretrain(bank, PATIENTS, tmp_path / "run", device="cpu")
    assert read_metrics(tmp_path / "run")[-1]["validate/contrastive"] > 0
    assert '"positives": "same-patient"' in (tmp_path / "run" / "config.json").read_text()
