"""What importing loads, and how large a saved adaptor is beside the encoders it belongs to.

Run: python benchmarks/footprint.py
Bars: `import adaptmed` and `adaptmed --help` load none of the heavy libraries, `from adaptmed import Adaptor` only
torch; a saved `cross` adaptor for DINOv2-S + MiniLM is at most 8 % of the frozen parameters; what `umd` trains beside
ViT-B/16 + BERT-base in the size `light`, pre-training modules counted, is under 10 % and its adaptor under 60 MB.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import timm
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from adaptmed import Adaptor, methods
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.encoders import Words
from adaptmed.fusion import CoConfig, CoFusion
from adaptmed.pretraining.pretext import build_pretext
from adaptmed.pretraining.views import Sizes

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
    for size_name in ("light", "paper"):
        print_masked(size_name)


def print_masked(size: Literal["light", "paper"]) -> None:
    """Print what UMD trains beside a ViT-B/16 at 224 px and a BERT-base, both with random weights."""
    image = timm.create_model("vit_base_patch16_224", num_classes=0)
    text = BertModel(BertConfig())
    frozen = sum(parameter.numel() for model in (image, text) for parameter in model.parameters())
    embeddings = text.get_input_embeddings().weight.detach()
    words = Words(tuple(map(str, range(len(embeddings)))), (0,), 103, embeddings)
    method = methods.umd(size=size)
    shape = method.fusion
    config = CoConfig(image_width=768, text_width=768, width=shape.width, layers=shape.layers, heads=shape.heads)
    pretext = build_pretext(method, Sizes(shape.width, words=words, cell_values=3 * 32**2))  # cells of 2 x 2 patches
    modules = {"adaptor.safetensors": CoFusion(config), "pretext.safetensors": pretext}
    trained = sum(trainable_parameters(module) for module in modules.values())
    with tempfile.TemporaryDirectory() as folder:
        for name, module in modules.items():
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, f"{folder}/{name}")
        sizes = {name: Path(folder, name).stat().st_size / 1e6 for name in modules}
    share = f"{trained:,} parameters = {trained / frozen:.2%} of {frozen:,}"
    files = ", ".join(f"{name} {megabytes:.1f} MB" for name, megabytes in sizes.items())
    print(f"umd, {size}: {share}; {files}" + (" (bars: 10 %, 60 MB)" if size == "light" else ""))


if __name__ == "__main__":
    main()
