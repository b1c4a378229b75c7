import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptmed.data.masks import read_mask
from adaptmed.data.volumes.reading import as_grey, read_volume
from adaptmed.errors import InputError
from tests.volume_files import write_nifti, write_series

VALUES = np.random.default_rng(0).integers(0, 900, (4, 5, 6)).astype(np.int16)
damages = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)
some = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_nifti(folder / "v.nii", VALUES)
    write_nifti(folder / "v.nii.gz", VALUES)
    Image.fromarray(VALUES[0].astype(np.uint8)).save(folder / "m.png")
    write_series(folder / "ct", VALUES)
    return folder


def damaged(content, changes, keep):
    broken = bytearray(content)
    for place, value in changes:
        broken[int(place * len(broken))] = value
    return bytes(broken[: int(keep * len(broken))])


def head_of(content):
    """Damage to a header of 348 bytes tells more than damage to voxels."""
    return damages.map(lambda damage: damaged(content[:348], *damage) + content[348:])


def check(read, path):
    try:
        read(path)
    except InputError as error:
        assert "`: expected" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "m.png"])
@given(data=st.data())
@some
def test_damaged_files_are_read_or_refused(whole, tmp_path, name, data):
    content = (whole / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data.draw(st.one_of(damages.map(lambda damage: damaged(content, *damage)), head_of(content))))
    check(read_mask, path)
    if name != "m.png":
        check(lambda path: as_grey(read_volume(path)), path)


@given(data=damages)
@some
def test_a_damaged_slice_is_read_or_refused(whole, data):
    path = whole / "ct" / "IM0002.dcm"
    content = path.read_bytes()
    try:
        path.write_bytes(damaged(content, *data))
        check(read_volume, whole / "ct")
    finally:
        path.write_bytes(content)
