"""Volumes: NIfTI files and DICOM series, as slices of a grid in millimetres."""
