"""A folder of DICOM slices to one grid of voxels: one series, in order of position, evenly spaced."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low

import numpy as np
from jaxtyping import Float32, Float64
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array

from adaptmed.data.decoding import decoding, refusal
from adaptmed.data.dicom import open_dicom, refuse_dicom
from adaptmed.data.volumes.grids import Affine
from adaptmed.data.volumes.nifti import MAX_VOXELS

SPACING_TOLERANCE = 0.05
_DIRECTION_TOLERANCE = 1e-3
_UNIT_TOLERANCE = 1e-2
_SAME_PLACE_MM = 1e-3
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_TO_NIFTI = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Slice:
    """What the header of one file says; ``towards`` has the direction of columns, then that of rows."""

    path: Path
    series: str
    position_mm: Float64[np.ndarray, " 3"]
    towards: Float64[np.ndarray, "2 3"]
    pixel_mm: tuple[float, float]
    shape: tuple[int, int]

    @property
    def height_mm(self) -> float:
        """Position along the normal of the slices."""
        return float(self.position_mm @ np.cross(*self.towards))


def read_series(folder: Path) -> tuple[Float32[np.ndarray, "depth height width_px"], Affine]:
    """Read the DICOM series in a folder.

    Files are those that end in ``.dcm`` or ``.dicom`` or bear the letters DICM; others, hidden files and DICOMDIR are
    passed over, and so are folders within. Slices are sorted by their position along the normal of their plane, never
    by file name or number. Values are those of the modality LUT (Hounsfield units in CT), windows are not applied.

    Args:
        folder: Holds one series and nothing else that is DICOM.

    Returns:
        The voxels, and the affine of their axes.

    Raises:
        InputError: No or one slice, several series, slices that differ in size, pixel spacing or orientation (direction
            cosines apart by more than 0.001), two slices in one place, a missing slice, a slice that lies further than
            5 % of the spacing from its place on an even grid, colour, several frames, over 600 million voxels, or a
            file that cannot be read.
    """
    slices = sorted((_header(path) for path in _files(folder)), key=lambda part: part.height_mm)
    _refuse_mixture(folder, slices)
    step_mm = _step(folder, slices)
    first = slices[0]
    voxels = len(slices) * first.shape[0] * first.shape[1]
    if voxels > MAX_VOXELS:
        raise refusal(folder, f"at most {MAX_VOXELS} voxels", voxels, "Leave this row out.")
    values = np.empty((len(slices), *first.shape), dtype=np.float32)
    for number, part in enumerate(slices):
        values[number] = _pixels(part)
    affine = np.eye(4)
    along_columns, along_rows = first.towards
    columns = (step_mm, along_rows * first.pixel_mm[0], along_columns * first.pixel_mm[1])
    affine[:3, :3] = _TO_NIFTI @ np.column_stack(columns)
    affine[:3, 3] = _TO_NIFTI @ first.position_mm
    return values, affine


def series_grid(folder: Path) -> tuple[tuple[int, int, int], Affine]:
    """Return about the size of a series and the directions of its axes, from its first file and the number of files.

    Raises:
        InputError: No or one slice, or a first file that cannot be read.
    """
    files = _files(folder)
    first = _header(files[0])
    affine = np.eye(4)
    affine[:3, :3] = _TO_NIFTI @ np.column_stack((np.cross(*first.towards), first.towards[1], first.towards[0]))
    return (len(files), *first.shape), affine


def _files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder; there are at least two."""
    with decoding(folder, "a folder"):
        files = sorted(path for path in folder.iterdir() if _is_dicom(path))
    if len(files) < 2:
        fix = "Name the folder that holds the slices; a single file is an image of its own."
        raise refusal(folder, "a folder of at least two DICOM slices", f"{len(files)} DICOM files", fix)
    return files


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _header(path: Path) -> _Slice:
    with decoding(path, "DICOM"):
        dataset = open_dicom(path, header_only=True)
        _refuse_kind(path, dataset)
        position_mm, cosines, pixel_mm = (np.array(dataset[name].value, dtype=np.float64) for name in _NEEDED)
        along_columns, along_rows = cosines.reshape(2, 3)
        products = [along_columns @ along_columns, along_rows @ along_rows, along_columns @ along_rows]
        if not np.allclose(products, [1, 1, 0], atol=_UNIT_TOLERANCE):
            raise refusal(path, "two unit directions at right angles", cosines.tolist(), "Leave this series out.")
        if not (np.isfinite(position_mm).all() and np.isfinite(pixel_mm).all() and pixel_mm.min() > 0):
            got = f"position {position_mm.tolist()}, pixel spacing {pixel_mm.tolist()}"
            raise refusal(path, "a position and a pixel spacing above 0", got, "Leave this series out.")
        series, shape = str(dataset.get("SeriesInstanceUID", "")), (int(dataset.Rows), int(dataset.Columns))
        return _Slice(path, series, position_mm, cosines.reshape(2, 3), (pixel_mm[0], pixel_mm[1]), shape)


def _refuse_kind(path: Path, dataset: Dataset) -> None:
    """Raise unless the header is that of one grey slice with a place in space."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        fix = "Convert it to NIfTI, or write every frame to a file of its own."
        raise refusal(path, "one slice per file", f"{frames} frames", fix)
    missing = [name for name in (*_NEEDED, "Rows", "Columns") if not dataset.get(name)]
    if missing:
        raise refusal(path, "a slice with its place in space", f"no {', '.join(missing)}", "Leave this series out.")
    kind = dataset.get("PhotometricInterpretation")
    if kind != "MONOCHROME2":
        raise refusal(path, "grey slices (MONOCHROME2)", kind, "Leave this series out.")


def _refuse_mixture(folder: Path, slices: list[_Slice]) -> None:
    """Raise unless all slices are of one series, size, pixel spacing and orientation."""
    series = sorted({part.series for part in slices})
    if len(series) > 1:
        one, other = (next(part.path.name for part in slices if part.series == name) for name in series[:2])
        got = f"{len(series)} series, see {one} and {other}"
        raise refusal(folder, "one series", got, "Give every series a folder of its own.")
    first = slices[0]
    for part in slices[1:]:
        names = f"{first.path.name} and {part.path.name}"
        if np.abs(part.towards - first.towards).max() > _DIRECTION_TOLERANCE:
            fix = "Give the slices of every orientation a folder of their own."
            raise refusal(folder, "slices of one orientation", f"another in {names}", fix)
        if part.shape != first.shape or not np.allclose(part.pixel_mm, first.pixel_mm, rtol=1e-3):
            got = f"{_size(first)} and {_size(part)} in {names}"
            raise refusal(folder, "slices of one size", got, "Leave this series out.")


def _step(folder: Path, slices: list[_Slice]) -> Float64[np.ndarray, " 3"]:
    """Return the way from one slice to the next in mm; raise unless all are spaced by it."""
    gaps = [after.height_mm - before.height_mm for before, after in pairwise(slices)]
    _refuse_gaps(folder, slices, gaps)
    places = np.stack([part.position_mm for part in slices])
    step_mm = (places[-1] - places[0]) / (len(slices) - 1)
    off_mm = np.linalg.norm(places - places[0] - np.arange(len(slices))[:, None] * step_mm, axis=1)
    worst = int(off_mm.argmax())
    if off_mm[worst] > SPACING_TOLERANCE * np.linalg.norm(step_mm):
        name = slices[worst].path.name
        got = f"gaps from {min(gaps):.4g} to {max(gaps):.4g} mm, {name} lying {off_mm[worst]:.3g} mm off"
        expected = f"evenly spaced slices (within {SPACING_TOLERANCE:.0%} of the spacing)"
        raise refusal(folder, expected, got, "Resample the series to even spacing, or leave it out.")
    return step_mm


def _refuse_gaps(folder: Path, slices: list[_Slice], gaps: list[float]) -> None:
    """Raise for slices in one place, and for a gap as wide as several others."""
    names = [f"{before.path.name} and {after.path.name}" for before, after in pairwise(slices)]
    if min(gaps) < _SAME_PLACE_MM:
        got = f"two in one place: {names[gaps.index(min(gaps))]}"
        raise refusal(folder, "one slice per position", got, "Keep one echo or one time point.")
    usual = median_low(gaps)
    for gap, pair in zip(gaps, names, strict=True):
        ratio = round(gap / usual)
        if ratio > 1 and abs(gap / usual - ratio) <= SPACING_TOLERANCE * ratio:
            got = f"a gap of {gap:.4g} mm between {pair}, where slices lie {usual:.4g} mm apart"
            raise refusal(folder, "no missing slice", got, f"Add the {ratio - 1} missing there, or leave it out.")


def _pixels(part: _Slice) -> Float32[np.ndarray, "height width_px"]:
    with decoding(part.path, "DICOM"):
        dataset = open_dicom(part.path)
        refuse_dicom(part.path, dataset, MAX_VOXELS)
        values = apply_modality_lut(pixel_array(dataset), dataset)
        return np.asarray(values, dtype=np.float32).reshape(part.shape)


def _size(part: _Slice) -> str:
    return f"{part.shape[0]} × {part.shape[1]} of {part.pixel_mm[0]:g} × {part.pixel_mm[1]:g} mm"
