"""Banks of pictures and volumes with masks, and runs on them, built once per session; no test changes them."""

import pytest

from adaptmed.tasks.pretrain import pretrain
from tests.masked_images import (
    SHORT_METHOD,
    embed_table,
    save_encoders,
    save_pyramid,
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


@pytest.fixture
def embedded(tmp_path, encoders):
    """Embed a table of files in this test's own folder."""

    def embed(table, folder="data", **options):
        return embed_table(
            table, tmp_path / folder, tmp_path / f"{folder}-bank", *encoders[: 1 + ("text" in table)], **options
        )

    return embed
