"""What a bank does not hold, said in words by whoever asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING

from adaptmed.errors import BankError, sentence

if TYPE_CHECKING:
    from adaptmed.bank.format import StoredImages


def lacks(folder: Path, part: str, option: str) -> BankError:
    """Build the error for a part that a bank was made without; ``option`` makes one with it."""
    fix = f"Run `adaptmed embed` with {option} into another --out."
    return BankError(sentence(str(folder), expected=f"a bank that holds {part}", got="none of them", fix=fix))


def require_pictures(folder: Path, images: "StoredImages | None") -> None:
    """Refuse a bank of volumes.

    Raises:
        BankError: It is one.
    """
    if images is not None and images.plane is not None:
        got, fix = "a bank of volumes", "Use `--task segmentation`, which reads volumes slice by slice."
        raise BankError(sentence(str(folder), expected="a bank of pictures", got=got, fix=fix))


def require_pixels(folder: Path, images: "StoredImages", *, own_size: bool) -> None:
    """Refuse a bank without pixels, or with pixels of the other form.

    Args:
        folder: Of the bank.
        images: Its facts.
        own_size: Whether slices at their own size are asked; else the encoder's input.

    Raises:
        BankError: It is one.
    """
    if not images.pixels:
        raise lacks(folder, "pixels", "--pixels")
    if images.own_size != own_size:
        sizes = {False: "the size of the encoder's input", True: "their own size"}
        fix = f"Read them with Bank.{'item_slices' if images.own_size else 'item_pixels'}."
        expected, got = f"pixels at {sizes[own_size]}", f"pixels at {sizes[images.own_size]}"
        raise BankError(sentence(str(folder), expected=expected, got=got, fix=fix))
