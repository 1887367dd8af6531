"""Every architecture, prepared for inference in each precision, packed and not, computes what it computed before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undiffuse.nets import (
    DDPMConfig,
    EDM2UNetConfig,
    EDMUNetConfig,
    RMSUNetConfig,
    UNet2DConfig,
    UNetConfig,
    prepare_for_inference,
)

SHARED: dict[str, Any] = {"image_size": 16, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
SKIPS: dict[str, Any] = {
    "down_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
CONFIGS: dict[str, Any] = {
    "adm": UNetConfig(**SHARED, attention_resolutions=(2,)),
    "ddpm": DDPMConfig(**SHARED, attention_resolutions=(2,)),
    "ddpm++": EDMUNetConfig(**SHARED),
    "ncsn++": EDMUNetConfig(**SHARED, time_type="fourier", time_mult=2, residual_input=True, filtered=True),
    "edm's adm": EDMUNetConfig(**{**SHARED, "model_channels": 64}, design="dhariwal"),
    "edm2": EDM2UNetConfig(**SHARED, attention_resolutions=(2,), time_channels=32, embedding=64, head_channels=32),
    "unet2d": UNet2DConfig(**SHARED, down_types=("DownBlock2D", "AttnDownBlock2D"),
                           up_types=("AttnUpBlock2D", "UpBlock2D")),
    "unet2d skips": UNet2DConfig(**SHARED, **SKIPS, norm_groups=None, time_type="fourier", head_channels=None),
    "rms": RMSUNetConfig(image_size=16, model_channels=32),
}  # fmt: skip


@pytest.mark.parametrize("gradient", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("bf16", 0.04)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_numbers(name: str, precision: str, near: float, gradient: bool) -> None:
    torch.manual_seed(0)
    net = CONFIGS[name].build().eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = net(x, t)
        output = prepare_for_inference(net, precision, "cpu", gradient=gradient)(x, t)
    assert output.dtype == torch.float32
    assert (output - expected).abs().max() < near * expected.abs().max()
    assert not output.bfloat16().float().equal(output)  # the last layer is never rounded to 16 bits
