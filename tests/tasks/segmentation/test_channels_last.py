import pytest
import torch

from adaptmed.heads.decoders import ScratchUnet
from adaptmed.tasks.segmentation.model import Segmenter, Windows
from adaptmed.tasks.segmentation.training import channels_last


@pytest.mark.parametrize(("dims", "depth"), [(2, None), (3, 5)])
def test_laying_kernels_out_changes_no_number(dims, depth):
    """Kernels of pictures are laid out anew; those of volumes, which have no such layout, pass as they are."""
    torch.manual_seed(0)
    model = Segmenter(ScratchUnet(3, spatial_dims=dims, channels=4)).eval()
    windows = Windows((32, 32), depth=depth, pixels=torch.rand(depth or 1, 3, 32, 32))
    with torch.inference_mode():
        before = model(windows)
        after = channels_last(model)(windows)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4 and min(parameter.shape[1:]) > 1]
    assert bool(kernels) == (dims == 2)
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(parameter.requires_grad for parameter in model.parameters())
