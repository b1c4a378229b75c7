import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adaptmed.data import masks
from adaptmed.data.images import read_image
from adaptmed.data.masks import read_mask, refuse_other_geometry, write_mask
from adaptmed.data.volumes.reading import read_volume
from adaptmed.errors import InputError
from tests.volume_files import write_nifti

reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
LABELS = np.array([[0, 1, 2], [3, 0, 3]], np.uint8)


def saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def coloured(path, array):
    """A palette image whose colours have nothing to do with its indices."""
    image = Image.frombytes("P", array.shape[::-1], array.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)
    return path


@given(array=hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 254)))
@reuse_folder
def test_grey_values_and_palette_indices_are_labels(tmp_path, array):
    for mask in (
        saved(tmp_path / "grey.png", array),
        saved(tmp_path / "rgb.png", np.stack([array] * 3, axis=-1)),
        saved(tmp_path / "deep.png", array.astype(np.uint16) * 257),
        coloured(tmp_path / "palette.png", array),
    ):
        found = read_mask(mask)
        assert found.values.dtype == np.int32
        assert found.affine is None
        np.testing.assert_array_equal(found.values, array.astype(int) * (257 if mask.name == "deep.png" else 1))


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA"])
def test_a_binary_mask_means_label_1(tmp_path, mode):
    binary = np.array([[0, 255], [255, 255]], np.uint8)
    path = saved(tmp_path / "m.png", binary, mode)
    assert read_mask(path).values.tolist() == [[0, 1], [1, 1]]
    assert read_mask(path, {1: "lesion"}).values.tolist() == [[0, 1], [1, 1]]
    assert read_mask(path, {255: "lesion"}).values.tolist() == [[0, 255], [255, 255]]
    assert read_mask(saved(tmp_path / "full.png", binary[1:], mode)).values.tolist() == [[1, 1]]
    assert read_mask(saved(tmp_path / "empty.png", binary * 0, mode)).values.tolist() == [[0, 0], [0, 0]]


def test_255_among_other_values_stays(tmp_path):
    assert read_mask(saved(tmp_path / "m.png", np.array([[0, 1, 255]], np.uint8))).values.tolist() == [[0, 1, 255]]


def test_a_mask_is_turned_upright_as_its_image_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "m.png", LABELS, exif=exif)
    np.testing.assert_array_equal(read_mask(path).values, np.rot90(LABELS, -1))
    assert read_mask(path).values.shape == read_image(path).shape


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_of_a_nifti_file(tmp_path, kind):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    mask = read_mask(write_nifti(tmp_path / "m.nii.gz", values))
    assert mask.values.dtype == np.int32
    assert mask.values.shape == (4, 3, 2)
    np.testing.assert_array_equal(mask.values, values[::-1, ::-1].transpose(2, 1, 0))
    binary = write_nifti(tmp_path / "b.nii", (values > 3).astype(np.int16) * 255)
    assert set(read_mask(binary).values.ravel()) == {0, 1}


# ---- what is refused


def transparent(path):
    grey = np.stack([LABELS] * 3 + [np.full_like(LABELS, 128)], axis=-1)
    return saved(path, grey)


def animated(path):
    frames = [Image.fromarray(LABELS + k) for k in (0, 1)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def truncated(path):
    saved(path, np.random.default_rng(0).integers(0, 9, (40, 40), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    return path


def renamed_jpeg(path):
    return saved(path, LABELS, format="JPEG")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("m.png", lambda path: path, "expected a file, but got nothing there"),
        ("m.nii", lambda path: path, "expected a file, but got nothing there"),
        ("m.png", renamed_jpeg, "expected PNG or NIfTI, but got another format"),
        ("m.png", truncated, "expected an image that can be decoded, but got OSError"),
        ("m.png", animated, "expected a single frame, but got an animation"),
        ("m.png", transparent, "expected grey values or palette indices, but got transparent pixels"),
        (
            "m.png",
            lambda path: saved(path, np.random.default_rng(0).integers(0, 9, (4, 4, 3), dtype=np.uint8)),
            "expected grey values or palette indices, but got colours",
        ),
        (
            "m.nii",
            lambda path: write_nifti(path, np.full((2, 2, 2), 0.5, np.float32)),
            "expected whole numbers from 0 to 65535, but got 0.5",
        ),
        ("m.nii", lambda path: write_nifti(path, np.full((2, 2, 2), -1, np.int16)), "but got -1. Write labels, not"),
        ("m.nii", lambda path: write_nifti(path, np.full((2, 2, 2), np.nan)), "but got nan"),
        (
            "m.nii.gz",
            lambda path: write_nifti(path, np.arange(70000, 70008, dtype=np.int32).reshape(2, 2, 2)),
            "but got 70000, 70001, 70002, 70003 and others",
        ),
        ("m.nii", lambda path: write_nifti(path, np.zeros((2, 2, 2, 3), np.uint8)), "expected three dimensions, but"),
    ],
)
def test_bad_masks_are_refused_in_words(tmp_path, name, make, words):
    with pytest.raises(InputError, match=rf"`.*{name}`: .*{words}"):
        read_mask(make(tmp_path / name))


def test_values_outside_the_list_are_named(tmp_path):
    path = saved(tmp_path / "m.png", LABELS)
    assert read_mask(path, {1: "a", 2: "b", 3: "c"}).values.max() == 3
    with pytest.raises(InputError, match=r"m\.png`: expected values among 0, 1, but got 2, 3\. Name them with --mask-"):
        read_mask(path, {1: "a"})
    path = write_nifti(tmp_path / "m.nii", np.arange(8).reshape(2, 2, 2).astype(np.uint8))
    with pytest.raises(InputError, match=r"m\.nii`: expected values among 0, 1, 2, 3, 4, 5, 6, but got 7"):
        read_mask(path, dict.fromkeys(range(1, 7), "x"))


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "MAX_PIXELS", 5)
    with pytest.raises(InputError, match="expected at most 5 pixels, but got 3 × 2"):
        read_mask(saved(tmp_path / "m.png", LABELS))


# ---- against the image


def test_a_mask_of_another_size(tmp_path):
    mask = read_mask(saved(tmp_path / "m.png", LABELS))
    refuse_other_geometry(mask, np.zeros((2, 3), np.uint8), "a.png")
    refuse_other_geometry(mask, np.zeros((2, 3, 3), np.uint8), "a.png")
    words = r"m\.png`: expected the size of its image `a\.png`, 3 × 2, but got 2 × 3"
    with pytest.raises(InputError, match=words):
        refuse_other_geometry(mask, np.zeros((3, 2), np.uint8), "a.png")


def test_a_mask_that_lies_elsewhere(tmp_path):
    affine = np.array([[1.0, 0.0, 0.1, -20.0], [0.0, 1.2, 0.0, 5.0], [-0.1, 0.0, 2.0, 3.0], [0, 0, 0, 1]])
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = read_volume(write_nifti(tmp_path / "v.nii", values, affine))

    def mask(change, shape=(3, 4, 5)):
        return read_mask(write_nifti(tmp_path / "m.nii", np.ones(shape, np.uint8), affine + change))

    shift = np.zeros((4, 4))
    refuse_other_geometry(mask(shift), volume, "v.nii")
    shift[0, 3] = 0.09
    refuse_other_geometry(mask(shift), volume, "v.nii")
    shift[0, 3] = 0.15
    words = (
        r"m\.nii`: expected the affine of its image `v\.nii` \(corners within 0\.1 voxel\), but got corners 0\.15 mm"
    )
    with pytest.raises(InputError, match=words):
        refuse_other_geometry(mask(shift), volume, "v.nii")
    stretched = np.zeros((4, 4))
    stretched[2, 2] = 0.2
    with pytest.raises(InputError, match=r"but got corners 0\.8 mm apart"):
        refuse_other_geometry(mask(stretched), volume, "v.nii")
    with pytest.raises(InputError, match=r"the size of its image `v\.nii`, 5 × 4 × 3, but got 6 × 4 × 3"):
        refuse_other_geometry(mask(0, (3, 4, 6)), volume, "v.nii")


def test_the_axes_of_a_mask_may_be_stored_in_another_order(tmp_path):
    affine = np.array([[1.0, 0, 0, -20.0], [0, 1.5, 0, 5.0], [0, 0, 2.0, 3.0], [0, 0, 0, 1]])
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = read_volume(write_nifti(tmp_path / "v.nii", values, affine))
    other = affine[:, [2, 0, 1, 3]].copy()
    other[:3, 3] += other[:3, 0] * 4
    other[:3, 0] *= -1
    mask = read_mask(write_nifti(tmp_path / "m.nii", values.transpose(2, 0, 1)[::-1], other))
    refuse_other_geometry(mask, volume, "v.nii")
    np.testing.assert_array_equal(mask.values, volume.values)


def test_a_picture_and_a_volume_need_masks_of_their_kind(tmp_path):
    flat = read_mask(saved(tmp_path / "m.png", LABELS))
    deep = read_mask(write_nifti(tmp_path / "m.nii", np.ones((3, 2, 1), np.uint8)))
    volume = read_volume(write_nifti(tmp_path / "v.nii", np.arange(6, dtype=np.int16).reshape(3, 2, 1)))
    with pytest.raises(InputError, match=r"m\.png`: expected a NIfTI mask, as `v\.nii` is a volume, but got PNG"):
        refuse_other_geometry(flat, volume, "v.nii")
    with pytest.raises(InputError, match=r"m\.nii`: expected a PNG mask, as `a\.png` is a picture, but got NIfTI"):
        refuse_other_geometry(deep, np.zeros((2, 3), np.uint8), "a.png")


# ---- written as PNG (NIfTI: test_volumes)


@given(array=hnp.arrays(np.int64, (4, 5), elements=st.sampled_from([0, 1, 2, 200, 65535])))
@reuse_folder
def test_a_written_picture_is_read_again(tmp_path, array):
    path = tmp_path / "deep" / "m.png"
    write_mask(path, array)
    np.testing.assert_array_equal(read_mask(path).values, array)
    assert [file.name for file in path.parent.iterdir()] == ["m.png"]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("m.jpg", LABELS, r"m\.jpg`: expected a name that ends in \.png, but got m\.jpg"),
        ("m.nii", LABELS, r"expected a name that ends in \.png, but got m\.nii"),
        ("m.png", LABELS[None], "expected a mask of 2 × 3, but got 1 × 2 × 3"),
        ("m.png", LABELS.astype(int) - 1, "expected labels from 0 to 65535, but got -1 to 2"),
        ("m.png", LABELS.astype(int) + 65535, "expected labels from 0 to 65535, but got 65535 to 65538"),
    ],
)
def test_what_no_png_can_hold(tmp_path, name, values, words):
    with pytest.raises(InputError, match=words):
        write_mask(tmp_path / name, values)
    assert list(tmp_path.iterdir()) == []
