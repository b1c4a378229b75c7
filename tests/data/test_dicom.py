from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from adaptmed.data.images import read_image
from adaptmed.errors import InputError

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def dicom(pixels, photometric="MONOCHROME2", bits=None, **elements):
    """A small DICOM file with the given stored values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def lut(table, first=0, bits=16):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in table])
    return [item]


def read(tmp_path, content, name="x.dcm"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_image(path)


def test_stored_8_bit_grey_stays_and_monochrome1_is_inverted(tmp_path):
    stored = np.arange(30, dtype=np.uint8).reshape(5, 6)
    np.testing.assert_array_equal(read(tmp_path, dicom(stored)), stored)
    np.testing.assert_array_equal(read(tmp_path, dicom(stored, "MONOCHROME1"), "x"), 255 - stored)


@given(array=hnp.arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(2, 9))).filter(lambda a: a.min() < a.max()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_without_a_window_the_range_is_from_lowest_to_highest(tmp_path, array):
    values = array.astype(float) * 2 - 1024
    want = (values - values.min()) / (values.max() - values.min())
    content = dicom(array, RescaleSlope="2", RescaleIntercept="-1024")
    np.testing.assert_allclose(read(tmp_path, content), want, atol=1e-6)
    content = dicom(array, "MONOCHROME1", RescaleSlope="2", RescaleIntercept="-1024")
    np.testing.assert_allclose(read(tmp_path, content), 1 - want, atol=1e-6)


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_in_hounsfield_units(tmp_path, kind):
    """The formulas of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, with an output range of 0 to 1."""
    stored = np.linspace(0, 4095, 120).astype(np.uint16).reshape(10, 12)
    units = stored.astype(float) - 1024
    want = {
        "LINEAR": np.clip((units - 39.5) / 399 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((units - 40) / 400 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (units - 40) / 400)),
    }[kind]
    window = {"WindowCenter": ["40", "600"], "WindowWidth": ["400", "1500"], "VOILUTFunction": kind}
    content = dicom(stored, bits=12, RescaleSlope="1", RescaleIntercept="-1024", **window)
    np.testing.assert_allclose(read(tmp_path, content), want, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut_comes_before_the_window(tmp_path, bits):
    stored = np.linspace(0, 4095, 120).astype(np.uint16).reshape(10, 12)
    table = np.linspace(0, 2**bits - 1, 4000).astype(int)
    content = dicom(stored, bits=12, VOILUTSequence=lut(table, 50, bits), WindowCenter="40", WindowWidth="400")
    want = table[np.clip(stored.astype(int) - 50, 0, 3999)] / (2**bits - 1)
    np.testing.assert_allclose(read(tmp_path, content), want, atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990},
        {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000},
    ],
    ids=range(3),
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_does_not_count_for_the_range(tmp_path, elements, photometric):
    stored = np.linspace(-40, 400, 110).clip(0).astype(np.int16).reshape(11, 10)
    want = stored / 400
    stored[0] = -2000
    if "PixelPaddingRangeLimit" in elements:
        stored[0, ::2] = -1994
    picture = read(tmp_path, dicom(stored, photometric, RescaleSlope="1", RescaleIntercept="-1024", **elements))
    np.testing.assert_allclose(picture, want if photometric == "MONOCHROME2" else 1 - want, atol=1e-6)


def test_padding_written_without_its_sign_and_padding_everywhere(tmp_path):
    stored = np.linspace(-40, 400, 110).clip(0).astype(np.int16).reshape(11, 10)
    content = dicom(stored, PixelPaddingValue=0, PixelPaddingRangeLimit=400)
    np.testing.assert_allclose(read(tmp_path, content), stored / 400, atol=1e-6)
    want = stored / 400
    stored[0] = -2000
    dataset = pydicom.dcmread(BytesIO(dicom(stored)))
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    dataset.save_as(tmp_path / "x.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm"), want, atol=1e-6)


def test_the_identity_rescale_changes_nothing(tmp_path):
    stored = np.arange(30, dtype=np.uint8).reshape(5, 6)
    picture = read(tmp_path, dicom(stored, RescaleSlope="1", RescaleIntercept="0"))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, stored)
    lowered = read(tmp_path, dicom(stored, RescaleSlope="1", RescaleIntercept="-5"))
    np.testing.assert_allclose(lowered, stored / 29, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "kind"), [("0", "LINEAR"), ("0.5", "LINEAR"), ("-3", "LINEAR_EXACT"), ("0", "SIGMOID"), (["0", "9"], "")]
)
def test_a_window_that_is_too_narrow_leaves_the_range(tmp_path, width, kind):
    stored = np.linspace(100, 4000, 120).astype(np.uint16).reshape(10, 12)
    elements = {"VOILUTFunction": kind} if kind else {}
    center = "40" if kind else ["40", "2000"]
    content = dicom(stored, bits=12, WindowCenter=center, WindowWidth=width, **elements)
    np.testing.assert_allclose(read(tmp_path, content), (stored - 100) / 3900, atol=1e-6)


def test_the_narrowest_windows_are_applied(tmp_path):
    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    narrow = read(tmp_path, dicom(stored, WindowCenter="8", WindowWidth="1"))
    np.testing.assert_array_equal(narrow, stored > 7.5)
    exact = read(tmp_path, dicom(stored, WindowCenter="8", WindowWidth="0.5", VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(exact.ravel(), [*[0] * 8, 0.5, *[1] * 7])


def test_modality_lut(tmp_path):
    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    table = np.arange(16) ** 2
    content = dicom(stored, ModalityLUTSequence=lut(table))
    np.testing.assert_allclose(read(tmp_path, content).ravel(), table / 225, atol=1e-6)


def test_colour(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(tmp_path, dicom(rgb, "RGB")), rgb)
    grey = np.stack([np.arange(48, dtype=np.uint8).reshape(6, 8), *np.full((2, 6, 8), 128, np.uint8)], axis=-1)
    picture = read(tmp_path, dicom(grey, "YBR_FULL"))
    np.testing.assert_array_equal(picture, grey[..., :1].repeat(3, axis=-1))
    wide = rgb.astype(np.uint16) * 257
    np.testing.assert_allclose(read(tmp_path, dicom(wide, "RGB")), rgb / 255, atol=1e-6)


def test_every_dicom_file_that_pydicom_ships_is_read_or_refused_with_a_reason():
    count, reasons = Counter(), []
    for path in sorted(path for path in SHIPPED.rglob("*") if path.is_file()):
        try:
            picture = read_image(path)
        except InputError as error:
            count["refused"] += 1
            reasons.append(str(error).removeprefix(f"`{path}`: "))
        else:
            count["read"] += 1
            assert picture.dtype in (np.uint8, np.float32)
            assert picture.min() >= 0
            assert picture.max() <= (255 if picture.dtype == np.uint8 else 1)
    assert count["read"] >= 70
    assert all(reason.startswith("expected ") for reason in reasons)
    assert sum("frames. Write every frame" in reason for reason in reasons) >= 6
    assert not any("force=True" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dicom(np.full((4, 4), 7, np.uint16)), "but got the same value in every pixel"),
        (b"\0" * 300, "expected a DICOM file, but got no DICM header"),
        (dicom(np.eye(9, dtype=np.uint8))[:-30], "expected an image that can be decoded, but got ValueError"),
        (dicom(np.eye(9, dtype=np.uint8), NumberOfFrames="3"), "a single frame, but got 3 frames. Write every frame"),
        (dicom(np.eye(9, dtype=np.uint8), Rows=0), "expected 1 to 100000000 pixels, but got 0 rows × 9 columns"),
        (dicom(np.eye(9, dtype=np.uint8), Rows=60000, Columns=60000), "but got 60000 rows × 60000 columns"),
        (dicom(np.eye(9, dtype=np.uint16), RescaleSlope="0", RescaleIntercept="0"), "the same value in every"),
    ],
    ids=range(7),
)
def test_bad_files_are_refused_in_words(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, content)


def test_dicom_without_pixels_or_decoder(tmp_path):
    with pytest.raises(InputError, match="expected a DICOM image, but got RT Plan Storage without pixel data"):
        read_image(SHIPPED / "rtplan.dcm")
    dataset = pydicom.dcmread(BytesIO(dicom(np.eye(8, dtype=np.uint8))))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="expected a transfer syntax of still images, but got MPEG2"):
        read_image(tmp_path / "x.dcm")


def test_a_missing_decoder_names_the_extra(monkeypatch):
    class Decoder:
        is_available = False

    monkeypatch.setattr("adaptmed.data.dicom.get_decoder", lambda _: Decoder())
    with pytest.raises(InputError, match=r"expected an installed decoder, but got .* JPEG.*adaptmed\[dicom\]"):
        read_image(SHIPPED / "JPEGLSNearLossless_08.dcm")


def test_values_that_are_not_finite(tmp_path):
    floats = np.array([[0.0, 1.0], [np.inf, 2.0]], dtype=np.float32)
    dataset = pydicom.dcmread(BytesIO(dicom(np.zeros((2, 2), np.uint16))))
    del dataset.PixelData
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = floats.tobytes()
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(InputError, match="but got values that are not finite"):
        read_image(tmp_path / "x.dcm")
    floats[1, 0] = 4
    dataset.FloatPixelData = floats.tobytes()
    dataset.save_as(tmp_path / "x.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm"), floats / 4)
