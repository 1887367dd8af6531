"""A small generative adversarial network, the classical baseline: DCGAN's shape with the hinge loss.

    generator:      z [B, 64] -> linear -> [B, 4w, s/4, s/4] -> up, conv -> up, conv -> tanh
    discriminator:  image -> conv, down -> conv, down -> linear, spectrally normalised
    loss:           D: max(0, 1 - D(x)) + max(0, 1 + D(G(z))),   G: -D(G(z))

References:
    Radford, Metz & Chintala 2016, arXiv:1511.06434; Miyato et al. 2018, arXiv:1802.05957 (hinge loss, spectral norm).
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from undiffuse.distributed import resolve_device
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8, to_uint8
from undiffuse.util.files import atomic_file

LATENT = 64


class Generator(nn.Module):
    """Maps latents to images.

    Args:
        size: Side of the images, divisible by 4.
        width: Channels before the last layer.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.first = nn.Linear(LATENT, 4 * width * (size // 4) ** 2)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(4 * width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, padding=1),
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Returns images [B, 1, size, size] in [-1, 1] of latents z [B, 64]."""
        return self.layers(self.first(z).reshape(len(z), 4 * self.width, self.size // 4, self.size // 4))


class Discriminator(nn.Module):
    """Scores images.

    Args:
        size: Side of the images, divisible by 4.
        width: Channels of the first layer.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(1, width, 3, padding=1)), nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)), nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)), nn.LeakyReLU(0.1),
            nn.Flatten(), spectral_norm(nn.Linear(4 * width * (size // 4) ** 2, 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns scores [B] of images [B, 1, size, size]."""
        return self.layers(x)[:, 0]


def width_for(size: int, parameters: int) -> int:
    """Returns the width at which generator and discriminator together have about a number of parameters."""

    def count(width: int) -> int:
        latent = LATENT * 4 * width * (size // 4) ** 2
        return latent + 9 * (8 + 2) * width**2 + 16 * (2 + 8) * width**2

    return min(range(4, 129, 2), key=lambda width: abs(math.log(count(width) / parameters)))


def networks(size: int, parameters: int, seed: int, device: Any = "cpu") -> tuple[Generator, Discriminator]:
    """Returns both networks, newly initialised."""
    width = width_for(size, parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(size, width).to(device), Discriminator(size, width).to(device)


def train_gan(
    scale: Any, seed: int, folder: Path, data: str, device: str = "auto", parameters: int | None = None
) -> nn.ModuleList:
    """Trains a GAN and writes its averaged generator to `folder`.

    Args:
        scale: Size, batch and length.
        seed: Decides weights, order of the images and latents.
        folder: Where generator.safetensors goes.
        data: Data reference.
        device: "auto", "cpu" or "cuda".
        parameters: Parameters of both networks together; by default those of the base arm.

    Returns:
        Generator and discriminator.
    """
    from safetensors.torch import save

    from undiffuse.data import prepare
    from undiffuse.data.opening import open_data

    where = resolve_device(device)
    source: Any = open_data(data)
    fit: Any = "pad" if scale.size == 32 else "crop"

    @cache
    def picture(number: int) -> np.ndarray[Any, Any]:
        return prepare(source.images[number], scale.size, 1, fit=fit)

    generator, critic = networks(scale.size, parameters or base_parameters(scale), seed, where)
    average = Generator(scale.size, generator.width).to(where)
    average.load_state_dict(generator.state_dict())
    of = lambda net: torch.optim.Adam(net.parameters(), lr=4e-4, betas=(0.0, 0.99))  # noqa: E731
    to_generator, to_critic = of(generator), of(critic)
    total = scale.images // scale.batch
    for update in range(total):
        numbers = NoiseSource(seed, range(update * scale.batch, (update + 1) * scale.batch), "gan")
        chosen = (numbers.uniform(0, "order") * len(source)).long().tolist()
        real = from_uint8(np.stack([picture(number) for number in chosen]), where)
        z = numbers.normal((LATENT,), step=0, purpose="z", device=where)
        fake = generator(z)
        loss = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake.detach())).mean()
        to_critic.zero_grad()
        loss.backward()
        to_critic.step()
        score = -critic(fake).mean()
        to_generator.zero_grad()
        score.backward()
        to_generator.step()
        with torch.no_grad():
            decay = min(0.99, (1 + update) / (10 + update))
            for kept, now in zip(average.state_dict().values(), generator.state_dict().values(), strict=True):
                kept.copy_(now if not kept.is_floating_point() else decay * kept + (1 - decay) * now)
    with atomic_file(folder / "generator.safetensors", overwrite=True) as file:
        file.write(save({k: v.contiguous() for k, v in average.state_dict().items()}, {"width": str(average.width)}))
    return nn.ModuleList([generator, critic])


def base_parameters(scale: Any) -> int:
    """Returns the number of parameters of the base arm."""
    from undiffuse.nets import UNetConfig
    from undiffuse.nets.meta import build_on_meta

    config = UNetConfig(
        image_size=scale.size, in_channels=1, out_channels=2, model_channels=scale.width, channel_mult=scale.mult,
        num_res_blocks=1, attention_resolutions=(2,), num_head_channels=max(scale.width // 2, 4),
        use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip
    net: Any = build_on_meta(config.build)
    return sum(p.numel() for p in net.parameters())


@torch.inference_mode()
def gan_samples(folder: Path, scale: Any, count: int, seed: int) -> Tensor:
    """Returns samples uint8 [count, size, size, 1] of a trained generator."""
    from safetensors import safe_open

    with safe_open(folder / "generator.safetensors", "pt") as file:
        width = int(file.metadata()["width"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    generator = Generator(scale.size, width).eval()
    generator.load_state_dict(weights)
    return to_uint8(generator(NoiseSource(seed, range(count), "gan").normal((LATENT,), purpose="sample")))
