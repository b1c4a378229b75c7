"""Banks of pictures and volumes with masks, and runs on them, built once per session; no test changes them."""

import pytest
from torch.nn import functional

from adaptmed.pretraining.pretrain import pretrain
from adaptmed.tasks.segmentation import predict
from tests.masked_images import (
    SHORT_METHOD,
    embed_table,
    save_encoders,
    save_pyramid,
    tune,
    write_pictures,
    write_volumes,
)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="session")
def encoders(place):
    return save_encoders(place)


@pytest.fixture(scope="session")
def pictures(place, encoders):
    return embed_table(write_pictures(place / "pictures"), place / "pictures", place / "bank", *encoders)


@pytest.fixture(scope="session")
def volumes(place, encoders):
    return embed_table(write_volumes(place / "volumes"), place / "volumes", place / "volume-bank", encoders[0])


@pytest.fixture(scope="session")
def run(place, pictures):
    pretrain(pictures, SHORT_METHOD, place / "run", device="cpu")
    return place / "run"


@pytest.fixture(scope="session")
def pyramid(place):
    return save_pyramid(place / "resnet")


@pytest.fixture(scope="session")
def tuned(place, pictures, run):
    tune(pictures, run, place / "tuned")
    return place / "tuned"


@pytest.fixture(scope="session")
def deep(place, volumes, run):
    tune(volumes, run, place / "deep")
    return place / "deep"


@pytest.fixture
def truthful(monkeypatch):
    """A model that says what the image shows: black is background, grey label 2, white label 5."""

    def said(_model, windows, *_, **__):
        classes = (windows.pixels.mean(dim=1) + 1).round().long()  # normalised from -1 to 1
        return functional.one_hot(classes, 3).movedim(-1, 1).float()

    monkeypatch.setattr(predict, "predict_pictures", said)
    monkeypatch.setattr(predict, "predict_volume", lambda *args, **options: said(*args, **options).transpose(0, 1))


@pytest.fixture
def embedded(tmp_path, encoders):
    """Embed a table of files in this test's own folder."""

    def embed(table, folder="data", **options):
        return embed_table(
            table, tmp_path / folder, tmp_path / f"{folder}-bank", *encoders[: 1 + ("text" in table)], **options
        )

    return embed
