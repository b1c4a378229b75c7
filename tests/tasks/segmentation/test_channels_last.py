import pytest
import torch

from adaptmed.heads.decoders import ScratchUnet
from adaptmed.tasks.segmentation.model import Segmenter, Windows
from adaptmed.tasks.segmentation.training import channels_last


@pytest.mark.parametrize(("dims", "depth"), [(2, None), (3, 5)])
def test_laying_kernels_out_changes_no_number(dims, depth):
    torch.manual_seed(0)
    model = Segmenter(ScratchUnet(3, spatial_dims=dims, channels=4)).eval()
    windows = Windows((32, 32), depth=depth, pixels=torch.rand(depth or 1, 3, 32, 32))
    with torch.inference_mode():
        before = model(windows)
        after = channels_last(model)(windows)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    kernels = [one for one in model.parameters() if one.ndim == dims + 2 and min(one.shape[1:]) > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
    assert all(parameter.requires_grad for parameter in model.parameters())
