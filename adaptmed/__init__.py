"""Parameter-efficient adapters on frozen backbones for medical images and text."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import adaptmed.methods as methods
    from adaptmed.adaptor.model import Adaptor as Adaptor
    from adaptmed.bank import Bank as Bank
    from adaptmed.data.manifest import Manifest as Manifest
    from adaptmed.encoders import load_image_encoder as load_image_encoder
    from adaptmed.encoders import load_text_encoder as load_text_encoder

__version__ = "0.1.0"

_HOME = {
    "Adaptor": "adaptmed.adaptor.model",
    "Bank": "adaptmed.bank",
    "Manifest": "adaptmed.data.manifest",
    "load_image_encoder": "adaptmed.encoders",
    "load_text_encoder": "adaptmed.encoders",
}
__all__ = ["Adaptor", "Bank", "Manifest", "load_image_encoder", "load_text_encoder", "methods"]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that ``import adaptmed`` costs nothing."""
    if name == "methods":
        return import_module("adaptmed.methods")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'adaptmed' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
