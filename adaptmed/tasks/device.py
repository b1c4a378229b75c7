"""Where work without Lightning is done."""

import torch


def device_of(name: str) -> torch.device:
    """The device that a name means; ``auto`` takes CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
