"""Every decoder, on pictures and on volumes: tuned shortly, judged, and asked for masks."""

from dataclasses import replace
from pathlib import Path

import pytest

from adaptmed.heads.decoders import NEEDS
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.tasks.segmentation.predict import predict
from tests.masked_images import QUICK, SHORT_METHOD, embed_table, tune, write_pictures, write_volumes


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("of", ["pictures", "volumes"])
def test_every_decoder_is_tuned_and_predicts(request, tmp_path, encoders, kind, of):
    bank, adaptor = request.getfixturevalue(of), request.getfixturevalue("run")
    if "transformer" not in NEEDS[kind].encoders:
        pyramid, folder = request.getfixturevalue("pyramid"), tmp_path / "data"
        few = embed_table(write_pictures(folder), folder, tmp_path / "bank", pyramid, encoders[1], taps=4)
        adaptor = tmp_path / "run"
        pretrain(few, SHORT_METHOD, adaptor, device="cpu")
        bank = few
        if of == "volumes":
            bank = embed_table(write_volumes(tmp_path / "v"), tmp_path / "v", tmp_path / "deep", pyramid, taps=4)
    settings = replace(QUICK, decoder=kind, steps=2, validations=1)
    result = tune(bank, adaptor, tmp_path / "out", settings=settings)
    names = bank.rows["image"].iloc[bank.subset("test")].tolist()
    images = {name: Path(bank.info.manifest).parent / name for name in names}
    assert predict(tmp_path / "out", images, tmp_path / "masks", device="cpu") == []
    assert result["test"]["images"] == len(names) == len([*(tmp_path / "masks").glob("[0-9]*")])
