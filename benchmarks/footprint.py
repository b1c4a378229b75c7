"""What importing loads, and how large a saved adaptor is beside the encoders it belongs to.

Run: python benchmarks/footprint.py
Bars: `import adaptmed` and `adaptmed --help` load none of the heavy libraries, `from adaptmed import Adaptor` only
torch; a saved `cross` adaptor for DINOv2-S + MiniLM is at most 8 % of the frozen parameters.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from adaptmed import Adaptor
from adaptmed.model import trainable_parameters

HEAVY = ["torch", "timm", "peft", "transformers", "open_clip", "lightning", "monai", "torchmetrics", "datasets"]
PROBES = {
    "import adaptmed": "import adaptmed",
    "adaptmed --help": "from adaptmed.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "from adaptmed import Adaptor": "from adaptmed import Adaptor",
}


def main() -> None:
    """Print both figures."""
    for name, code in PROBES.items():
        script = f"import sys, io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n  exec({code!r})\n"
        script += f"print(*[m for m in {HEAVY} if m in sys.modules])"
        loaded = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.strip()
        print(f"{name:32s} loads: {loaded or 'none of them'}")
    adaptor = Adaptor.from_encoders("bundled:dinov2-small", "bundled:minilm-l6")
    trainable, frozen = trainable_parameters(adaptor.fusion), adaptor.encoders.parameters_count
    with tempfile.TemporaryDirectory() as folder:
        adaptor.save_pretrained(Path(folder) / "adaptor")
        size = sum(file.stat().st_size for file in (Path(folder) / "adaptor").iterdir())
    share = f"{trainable:,} parameters = {trainable / frozen:.2%} of {frozen:,} (bar: 8 %)"
    print(f"saved adaptor: {size / 1e6:.1f} MB, {share}")


if __name__ == "__main__":
    main()
