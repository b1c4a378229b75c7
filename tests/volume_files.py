"""NIfTI files and DICOM series as other programs write them, made up."""

import nibabel
import numpy as np
import pandas as pd
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

AXIAL = (1, 0, 0, 0, 1, 0)


def write_nifti(path, values, affine=None, kind=nibabel.Nifti1Image):
    nibabel.save(kind(values, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def position(number, spacing_mm, orientation=AXIAL, origin=(-20.0, -30.0, 40.0)):
    """Where slice ``number`` starts, in DICOM's world."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [float(value) for value in np.add(origin, number * spacing_mm * normal)]


def slice_file(pixels, place, orientation=AXIAL, pixel_mm=(1.0, 1.0), **elements):
    """A grey DICOM slice; ``elements`` are set last, ``None`` deletes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
    dataset.ImagePositionPatient = [f"{value:.6g}" for value in place]
    dataset.ImageOrientationPatient, dataset.PixelSpacing = list(orientation), list(pixel_mm)
    dataset.PixelData = pixels.astype(np.int16).tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def write_series(folder, pixels, spacing_mm=2.5, orientation=AXIAL, places=None, changes=None, **elements):
    """Write ``(slice, row, column)`` pixels to a folder under names that say nothing of their order.

    Args:
        places: Position of each slice in units of the spacing; by default 0, 1, 2, …
        changes: Slice number → elements of that slice alone.
        elements: Of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(3).permutation(len(pixels))
    for number, picture in enumerate(pixels):
        place = position(number if places is None else places[number], spacing_mm, orientation)
        own = {**elements, **(changes or {}).get(number, {})}
        dataset = slice_file(picture, place, orientation, **own)
        dataset.save_as(folder / f"IM{names[number]:04d}.dcm", enforce_file_format=True)
    return folder


DEPTHS = (5, 2, 7, 3, 1, 4)


def make_volumes(folder, depths=DEPTHS):
    """Write one volume per depth, the second a DICOM series and the third gzipped, and a table of them with texts."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    names = []
    for number, depth in enumerate(depths):
        values = generator.integers(-1000, 1000, (40 - number, 36 + number, depth)).astype(np.int16)
        if number == 1:
            names.append(f"{number}-series")
            write_series(folder / names[-1], values.transpose(2, 1, 0))
        else:
            names.append(f"{number}.nii{'.gz' if number == 2 else ''}")
            write_nifti(folder / names[-1], values)
    texts = [("no effusion", "a small left effusion", "")[number % 3] for number in range(len(depths))]
    return pd.DataFrame({"image": names, "text": texts, "split": "train"})
