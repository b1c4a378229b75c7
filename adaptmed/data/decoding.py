"""What every reader of files stands in: decoders are quiet, and what they raise becomes a sentence with the file."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from PIL import UnidentifiedImageError

from adaptmed.errors import InputError, sentence


@contextmanager
def decoding(path: Path, kinds: str) -> Iterator[None]:
    """Silence decoders and turn what they raise into an ``InputError`` that names the file. Safe in several threads.

    Args:
        path: The file that is read inside.
        kinds: What it may be, for the message.

    Raises:
        InputError: Anything was raised inside; an ``InputError`` passes as it is.
    """
    try:
        with _quiet():
            yield
    except InputError:
        raise
    except FileNotFoundError as error:
        fix = "Mend the path; it is read from the manifest's folder."
        raise refusal(path, "a file", "nothing there", fix) from error
    except UnidentifiedImageError as error:
        raise refusal(path, kinds, "another format", "Convert it to PNG, or leave this row out.") from error
    except Exception as error:  # decoders raise almost anything on damaged files
        got = f"{type(error).__name__}: {error}"
        raise refusal(path, "an image that can be decoded", got, "Replace the file, or leave this row out.") from error


def refusal(path: Path, expected: str, got: object, fix: str) -> InputError:
    """Build the error of a file, in one line of bearable length whatever a decoder or header says."""
    return InputError(sentence(str(path), expected=expected, got=" ".join(str(got).split())[:300], fix=fix))


def times(sides: Iterable[int]) -> str:
    """Say a size.

    Example:
        >>> times((3, 256, 192))
        '3 × 256 × 192'
    """
    return " × ".join(str(side) for side in sides)


class _Readers:
    """How many threads read at this moment, and the warning filters to restore when the last one is done."""

    lock = Lock()
    count = 0
    filters = warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what decoders say about odd files; the filters are the process's, not the thread's."""
    with _Readers.lock:
        if _Readers.count == 0:
            _Readers.filters = warnings.catch_warnings()
            _Readers.filters.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom|nibabel|adaptmed\.data)\b")
        _Readers.count += 1
    try:
        yield
    finally:
        with _Readers.lock:
            _Readers.count -= 1
            if _Readers.count == 0:
                _Readers.filters.__exit__(None, None, None)
