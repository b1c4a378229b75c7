"""The phantom: made-up chest-radiograph-like pictures with reports, masks and questions; no medical data."""

from adaptmed.data.phantom.findings import FINDINGS, Finding
from adaptmed.data.phantom.write import write_phantom

__all__ = ["FINDINGS", "Finding", "write_phantom"]
