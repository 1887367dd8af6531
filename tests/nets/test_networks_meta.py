"""Networks without weights: the names and shapes of the real ones, and nothing drawn or computed for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.nets.meta import build_on_meta

SMALL: dict[str, Any] = {"image_size": 8, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
CONFIGS = [
    UNetConfig(**SMALL, num_classes=3),
    DDPMConfig(**SMALL),
    ClassifierConfig(**SMALL, out_channels=3, pool="attention", num_head_channels=32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_it_has_the_names_and_shapes_of_the_network(config: Any) -> None:
    before = torch.get_rng_state()
    empty = build_on_meta(config.build)
    assert torch.equal(torch.get_rng_state(), before)
    real = config.build()
    assert type(empty) is type(real)
    shapes = {name: value.shape for name, value in real.state_dict().items()}
    assert {name: value.shape for name, value in empty.state_dict().items()} == shapes
    assert {value.device.type for value in [*empty.parameters(), *empty.buffers()]} == {"meta"}


def test_it_computes_as_the_network_once_it_has_its_weights() -> None:
    config = CONFIGS[0]
    real = config.build().eval()
    for parameter in real.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    net = build_on_meta(config.build).eval()
    net.load_state_dict(real.state_dict(), assign=True)
    x, t, y = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.tensor([1.0, 7.0]), torch.tensor([0, 2])
    assert torch.equal(net(x, t, y=y), real(x, t, y=y))


def test_what_is_filled_outside_is_filled() -> None:
    build_on_meta(CONFIGS[0].build)
    assert torch.nn.init.ones_(torch.empty(2)).tolist() == [1.0, 1.0]
