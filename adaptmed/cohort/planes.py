"""The slices of a volume in a bank, plane by plane."""

from adaptmed.bank.read import Bank
from adaptmed.data.volumes.grids import planes_in


def slices_by_plane(bank: Bank, row: int) -> tuple[range, ...]:
    """Return the image items of a row, one range for each plane that its volume was sliced in; one for a picture.

    Of three planes the items of a row are all its axial slices, then all coronal ones, then all sagittal ones. There
    are as many coronal slices as an axial slice has rows, and as many sagittal ones as it has columns.

    Args:
        bank: With images.
        row: Row number.

    Raises:
        BankError: The bank holds three planes and no pixels.
    """
    items = bank.items_of(row)
    if len(planes_in(bank.images.plane or "axial")) == 1 or not len(items):
        return (items,)
    height, width = bank.slice_sizes([items.start])[0].tolist()
    coronal, sagittal = items.stop - width - height, items.stop - width
    return range(items.start, coronal), range(coronal, sagittal), range(sagittal, items.stop)


def depth_of(bank: Bank, row: int) -> int:
    """Return how many slices of the first plane a row's volume has: the axial ones of three."""
    return len(slices_by_plane(bank, row)[0])
