"""One DICOM file to one picture: modality LUT, VOI LUT or window, MONOCHROME1, palettes and colour."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, get_decoder, pixel_array
from pydicom.uid import UID

from adaptmed.data.decoding import refusal

_EXTRA = "Run: pip install 'adaptmed[dicom]', or decompress the file."


def read_dicom(path: Path, max_pixels: int) -> NDArray[np.uint8] | NDArray[np.float64]:
    """Read a single-frame DICOM file as it would be shown.

    Grey: the modality LUT (or rescale), then the first VOI LUT, else the first window, else the range from the lowest
    to the highest value, padding left out; MONOCHROME1 is inverted, so that bright means bright. Unsigned 8-bit grey
    with none of the three is taken as stored; a rescale that changes nothing and a window narrower than DICOM allows
    count as none. Colour: RGB as stored, YBR converted, palettes applied.

    Args:
        path: The file.
        max_pixels: More rows × columns are refused before anything is decoded.

    Returns:
        ``(height, width)`` or ``(height, width, 3)``: uint8, or floats in [0, 1] where the stored values are deeper
        than 8 bit or pass through a LUT or window.

    Raises:
        InputError: No image, several frames, too large, or a compression that no installed decoder reads.
        Exception: Whatever pydicom raises on a damaged file.
    """
    dataset = open_dicom(path)
    refuse_dicom(path, dataset, max_pixels)
    try:
        pixels = pixel_array(dataset)
    except RuntimeError as error:
        raise refusal(path, "pixel data that can be decoded", error, f"If the file is whole: {_EXTRA}") from error
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)[..., :3]
        return _full_range(colours, 8 * colours.dtype.itemsize)
    if pixels.ndim == 3:
        return _full_range(pixels, dataset.BitsStored)
    picture = _grey(pixels, dataset)
    if kind == "MONOCHROME1":
        return 255 - picture if picture.dtype == np.uint8 else 1 - picture
    return picture


def open_dicom(path: Path, *, header_only: bool = False) -> Dataset:
    """Read the elements of a DICOM file, with ``header_only`` up to the pixels; refuse one without a header."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=header_only)
    except InvalidDicomError as error:
        raise refusal(path, "a DICOM file", "no DICM header", "Write the file again with its header.") from error


def refuse_dicom(path: Path, dataset: Dataset, max_pixels: int) -> None:
    """Raise for everything that can be seen before decoding."""
    file_meta = dataset.file_meta
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = UID(dataset.get("SOPClassUID") or file_meta.get("MediaStorageSOPClassUID") or "").name or "an object"
        raise refusal(path, "a DICOM image", f"{kind} without pixel data", "Leave this row out.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        fix = "Write every frame that you want to a file and a row of its own."
        raise refusal(path, "a single frame", f"{frames} frames", fix)
    rows, columns = dataset.get("Rows") or 0, dataset.get("Columns") or 0
    if not 0 < rows * columns <= max_pixels:
        raise refusal(
            path, f"1 to {max_pixels} pixels", f"{rows} rows × {columns} columns", "Mend or shrink the image."
        )
    syntax = UID(file_meta.get("TransferSyntaxUID") or "")
    try:
        readable = get_decoder(syntax).is_available
    except NotImplementedError as error:
        fix = "Convert the file to Explicit VR Little Endian."
        raise refusal(path, "a transfer syntax of still images", syntax.name or "none", fix) from error
    if not readable:
        raise refusal(path, "an installed decoder", f"transfer syntax {syntax.name} without one", _EXTRA)


def _grey(pixels: NDArray[np.generic], dataset: Dataset) -> NDArray[np.uint8] | NDArray[np.float64]:
    """Apply the grey-scale pipeline and scale its output range to [0, 1]."""
    values = pixels if _rescale_is_identity(dataset) else apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        return _lookup(values, dataset.VOILUTSequence[0], dataset.is_little_endian is not False)
    if _has_window(dataset):
        low, high = apply_windowing(np.array([-1e30, 1e30]), dataset)  # the ends of its output range
        return (apply_windowing(values, dataset) - low) / (high - low)
    if values is pixels and pixels.dtype == np.uint8 and dataset.BitsStored == 8:
        return pixels.view(np.uint8)
    values, padding = values.astype(np.float64), _padding(pixels, dataset)
    shown = values if padding.all() else values[~padding]
    low, high = shown.min(), shown.max()
    return np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)


def _rescale_is_identity(dataset: Dataset) -> bool:
    has_lut = bool(dataset.get("ModalityLUTSequence"))
    return not has_lut and dataset.get("RescaleSlope") == 1 and dataset.get("RescaleIntercept") == 0


def _has_window(dataset: Dataset) -> bool:
    """Whether there is a first window, as wide as PS3.3 C.11.2.1.2 and C.11.2.1.3 ask for."""
    if not all(name in dataset and dataset[name].VM for name in ("WindowCenter", "WindowWidth")):
        return False
    width = dataset.WindowWidth[0] if dataset["WindowWidth"].VM > 1 else dataset.WindowWidth
    linear = str(dataset.get("VOILUTFunction", "LINEAR")).upper() == "LINEAR"
    return bool(width >= 1 if linear else width > 0)


def _padding(pixels: NDArray[np.generic], dataset: Dataset) -> NDArray[np.bool_]:
    """Where the stored values stand for no picture; some files write the padding value without its sign."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(pixels.shape, dtype=np.bool_)
    ends = np.array([value, limit if isinstance(limit, int) else value]).astype(pixels.dtype)
    return (pixels >= ends.min()) & (pixels <= ends.max())


def _lookup(values: NDArray[np.generic], item: Dataset, little_endian: bool) -> NDArray[np.float64]:
    """Apply a VOI LUT; pydicom 3's own wraps values above 255 around where the entries have 8 bits."""
    entries, first, bits = item.LUTDescriptor
    entries = entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "u1" if len(data) == entries else "<u2" if little_endian else ">u2")
    table = np.asarray(data, dtype=np.float64)[:entries] / (2**bits - 1)
    index = np.clip(np.round(values.astype(np.float64)) - first, 0, len(table) - 1)
    return np.clip(table, 0, 1)[index.astype(np.intp)]


def _full_range(pixels: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8] | NDArray[np.float64]:
    """Scale the whole range of values to [0, 1]; 8 bit stays as it is."""
    return pixels.astype(np.uint8) if bits == 8 else pixels / (2.0**bits - 1)
