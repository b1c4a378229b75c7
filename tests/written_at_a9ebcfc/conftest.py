"""The files of a9ebcfc, unpacked once, and the one thread with which their numbers were made."""

import pytest
import torch

from tests.written_at_a9ebcfc.held import unpack


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("a9ebcfc"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
