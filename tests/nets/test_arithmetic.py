"""Seeds of 64 bits, and float32 that is float32 whatever switches the caller's program set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from undiffuse.arithmetic import exact_float32, float32_switches, steady_float32
from undiffuse.metrics.extractors.base import exact_arithmetic
from undiffuse.nets.runner import NetworkRunner
from undiffuse.noise import seed_generator
from undiffuse.training.randomness import derived_seed, seeded

CPU = torch.device("cpu")
new_switches = pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="before PyTorch 2.9")


def _leaves() -> list[Any]:
    b = torch.backends
    return [b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn]


@pytest.fixture(autouse=True)
def switches_as_before() -> Iterator[None]:
    before = [leaf.fp32_precision for leaf in _leaves()]
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for leaf, value in zip(_leaves(), before, strict=True):
        leaf.fp32_precision = value


def legacy() -> None:
    torch.set_float32_matmul_precision("medium")


def everything() -> None:
    torch.backends.fp32_precision = "bf16"


def one_part() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def for_another_device() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


CASES = [legacy, everything, one_part, for_another_device]


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.linear = torch.nn.Linear(256, 256).requires_grad_(False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)).reshape(x.shape)


@pytest.mark.parametrize("switch", CASES)
@new_switches
def test_float32_is_exact_and_switches_come_back(switch: Callable[[], None]) -> None:
    x, net = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)), Layer()
    plain = net(x, x)
    switch()
    before = [leaf.fp32_precision for leaf in _leaves()]
    assert float32_switches(CPU)
    with exact_arithmetic(CPU):
        assert float32_switches(CPU) == {}
        assert torch.equal(net(x, x), plain)
    assert torch.equal(NetworkRunner(net, "fp32", CPU)(x, x), plain)
    assert [leaf.fp32_precision for leaf in _leaves()] == before
    if switch is everything:  # switches that followed another follow it again
        torch.backends.fp32_precision = "none"
        assert float32_switches(CPU) == {}


@new_switches
def test_switches_come_back_after_an_error_too() -> None:
    legacy()
    with pytest.raises(KeyError), exact_float32(CPU):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "medium"
    assert float32_switches(CPU) == {"matmul": "bf16"}


@new_switches
def test_the_switches_of_a_gpu_are_recorded_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert float32_switches(gpu) == {"conv": "tf32", "rnn": "tf32"}
    with steady_float32(gpu):
        assert float32_switches(gpu) == {"conv": "tf32", "rnn": "tf32"}
    with exact_float32(gpu):
        assert float32_switches(gpu) == {}
    assert float32_switches(gpu) == {"conv": "tf32", "rnn": "tf32"}
    assert torch.backends.cudnn.allow_tf32, "PyTorch answers through the old switch as before"


def drawn(seed: int) -> torch.Tensor:
    with seeded(seed):
        return torch.cat([torch.rand(700), torch.randn(700)])


def test_all_bits_of_a_seed_count() -> None:
    seeds = [7, 7 + 2**32, 7 + 2**33, 7 + 2**63, 8]
    assert len({tuple(drawn(seed).tolist()) for seed in seeds}) == len(seeds)
    wide = drawn(7 + 2**32)
    assert torch.equal(wide, drawn(7 + 2**32))
    assert 0.45 < float(wide[:700].mean()) < 0.55
    assert abs(float(wide[700:].std()) - 1) < 0.1


def test_small_seeds_give_the_numbers_they_always_gave() -> None:
    for seed in (0, 7, 2**32 - 1):
        expected = torch.Generator().manual_seed(seed)
        assert torch.equal(drawn(seed)[:700], torch.rand(700, generator=expected))


def test_derived_seeds_of_equal_lower_halves_differ() -> None:
    """Of a hundred thousand updates, two share the lower 32 bits; PyTorch alone would drop out the same units."""
    lower: dict[int, int] = {}
    for images in range(400_000):
        seed = derived_seed(0, images, 0, 0)
        other = lower.setdefault(seed & 0xFFFFFFFF, seed)
        if other != seed:
            break
    else:
        pytest.fail("no pair was found")
    assert torch.equal(*(torch.rand(5, generator=torch.Generator().manual_seed(s)) for s in (seed, other)))
    assert not torch.equal(drawn(seed), drawn(other))


def test_a_generator_of_ones_own_is_seeded() -> None:
    generator = torch.Generator()
    seed_generator(generator, 2**40)
    assert torch.equal(torch.rand(700, generator=generator), drawn(2**40)[:700])
