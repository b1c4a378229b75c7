"""Silence for transformers while it loads weights: its bar and its report say nothing that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the bar "Loading weights" and the table of missing weights; both are as they were afterwards.

    Missing weights that matter are refused in words by the caller, who has the same list.
    """
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
