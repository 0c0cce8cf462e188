"""Networks of torchvision: how many convolutions are fused, and that the results are the same."""

import pytest
import torch
from torch import nn

import epiconv

NETWORKS = [
    # family, name, images, fused, all
    ("", "resnet50", (1, 3, 64, 64), 53, 53),
    ("", "regnet_y_400mf", (1, 3, 64, 64), 85, 85),
    ("", "mobilenet_v3_small", (1, 3, 64, 64), 52, 52),
    ("", "efficientnet_b0", (1, 3, 64, 64), 81, 81),
    ("", "googlenet", (1, 3, 64, 64), 57, 57),
    ("", "convnext_tiny", (1, 3, 64, 64), 0, 22),  # each is followed by a permutation
    ("segmentation", "deeplabv3_resnet50", (1, 3, 64, 64), 60, 61),
    ("video", "r3d_18", (1, 3, 4, 32, 32), 20, 20),
]


@pytest.mark.parametrize(("family", "name", "images", "fused", "convolutions"), NETWORKS)
def test_networks(family, name, images, fused, convolutions, capsys):
    torchvision = pytest.importorskip("torchvision", exc_type=Exception)
    torch.manual_seed(0)
    words = {"weights_backbone": None} if family == "segmentation" else {}
    words |= {"init_weights": False} if name == "googlenet" else {}
    models = getattr(torchvision.models, family) if family else torchvision.models
    model = getattr(models, name)(weights=None, **words).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    x = torch.randn(images)
    ours = epiconv.fuse(model, x)
    rows = epiconv.report(ours).rows
    assert (sum(row.fused for row in rows), len(rows)) == (fused, convolutions)
    assert list(ours.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        y, expected = ours(x), model(x)
    if family == "segmentation":
        y, expected = y["out"], expected["out"]
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)
