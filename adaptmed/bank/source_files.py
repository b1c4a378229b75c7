"""The files behind a bank's rows, for what is read again: images, masks, volumes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of


@dataclass(frozen=True, eq=False)
class ManifestFiles:
    """Where the files of a bank's rows stand.

    Attributes:
        root: Folder of the manifest, or of the dataset.
        images: Of each row, relative to it.
        masks: Of each row; blank where there is none.
    """

    root: Path
    images: NDArray[np.object_]
    masks: NDArray[np.object_]

    @classmethod
    def of(cls, bank: Bank) -> Self:
        """Find the manifest or the dataset that a bank was made of.

        Raises:
            InputError: It is gone or another one now.
        """
        path = Path(bank.info.manifest)
        if not path.is_dir() and (not path.is_file() or sha256_of(path) != bank.info.manifest_sha256):
            got = "another table now" if path.is_file() else "nothing there"
            fix = "Images and masks are read again from it: put the table back, or embed the new one."
            raise InputError(sentence(str(path), expected="the table the bank was made of", got=got, fix=fix))
        blank = np.full(len(bank), "", dtype=object)
        masks = bank.rows["mask"].astype(str).to_numpy(object) if "mask" in bank.rows else blank
        return cls(root_of(bank), bank.rows["image"].astype(str).to_numpy(object), masks)

    def image(self, row: int) -> Path:
        """The image of a row: a file, or the folder of a series."""
        return self.root / self.images[row]

    def mask(self, row: int) -> Path:
        """The mask of a row."""
        return self.root / self.masks[row]


def root_of(bank: Bank) -> Path:
    """The folder that paths in a bank's rows start from: that of the manifest, or the dataset's own."""
    path = Path(bank.info.manifest)
    return path if path.is_dir() else path.parent
