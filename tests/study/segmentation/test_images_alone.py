"""A study of masks with an adaptor of images alone, on a bank without texts."""

from dataclasses import replace

import pytest

from adaptmed.errors import InputError
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.study.segmentation.subject import open_subject, prepare
from tests.images_alone import save_images_alone
from tests.masked_pictures import STUDY, embed_pictures, write_masked_table

ARMS = ("empty", "frozen", "adaptor", "adaptor-trained", "adaptor-untrained")
SETTINGS = replace(STUDY, fractions=(1.0,), seeds=1, replicates=10, arms=ARMS)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    return embed_pictures(write_masked_table(folder / "data"), folder / "bank", holds_texts=False)


def test_every_arm_is_judged(bank, tmp_path):
    run = save_images_alone(bank, tmp_path / "run")
    results = study_segmentation([bank], [run], tmp_path / "out", settings=SETTINGS, device="cpu")
    assert {record["arm"] for record in results["records"]} == set(ARMS)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(("arm", "way_out"), [("adaptor", "Pass --adaptor."), ("adaptor+lora", "Pass --tuned-bank")])
def test_an_arm_without_its_adaptor_is_refused(bank, tmp_path, arm, way_out):
    alone = replace(SETTINGS, arms=("empty",))
    subject = prepare(open_subject(bank, None, alone), tmp_path / "masks", alone)
    with pytest.raises(InputError, match=f"expected an adaptor for the arm {arm.replace('+', '.')}.* {way_out}"):
        subject.adaptor_of(arm)
