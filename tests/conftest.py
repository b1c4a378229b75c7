"""What every test stands on: no network, seeded randomness, GPU tests only where there is a GPU."""

import ipaddress
import os
import random
import socket
import sys

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
hypothesis.settings.register_profile("adaptmed", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("adaptmed")


def is_local(address: object) -> bool:
    """Whether a socket address stays on this machine: a Unix path, or loopback."""
    if not isinstance(address, tuple):
        return True
    if address[0] in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False


def pytest_configure(config):
    """Close the network for the whole session, collection included."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect):
    def connect_locally(self, address):
        if not is_local(address):  # no OSError: a library may take that for an offline machine and go on
            raise RuntimeError(f"a test tried to reach the network at {address}")
        return connect(self, address)

    return connect_locally


def pytest_collection_modifyitems(items):
    """Skip the tests marked ``gpu`` where torch sees none; torch is asked only when there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the generators that are loaded, so that a test alone draws what it draws among others."""
    value = 20240229
    random.seed(value)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(value)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(value)
    return value
