"""The diffusion models of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233): ImageNet, LSUN and the upsamplers.

Settings are those of the paper's Appendix I (Tables 11 and 13); results those of its Tables 4, 5, 6 and 16. Where the
paper and the flags of the released files disagree (attention of an upsampler), the files decide. The authors trained
in 16-bit precision with a loss scale and 32-bit weights, hence "fp16"; "bf16" needs no scale and is what a newer GPU
would use. Flips are the default of the released data loader. No warm-up, decay or clipping is stated, and none is in
the released script.

All have 1,000 steps, a learned variance and the hybrid loss, BigGAN up- and down-sampling and adaptive group norm.
Figures in published are FID, sFID, precision and recall of 50,000 samples. Guided samples use the classifier that
`advice` names; 25 steps are DDIM ("ddim25"), others ancestral.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import NOT_RUN, Advice, Preparation, Recipe, paper_training

_SOURCE = "Dhariwal & Nichol 2021"
_OBJECTIVE = ObjectiveConfig(loss="hybrid", rescale=False, decoder="tanh")
LINEAR = ProcessConfig(schedule="linear")
COSINE = ProcessConfig(schedule="cosine")
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _net(size: int, pixels: tuple[int, ...] = (32, 16, 8), **more: Any) -> UNetConfig:
    """ADM's U-Net: 256 channels, two blocks a level, heads of 64 channels, attention where feature maps have `pixels`
    pixels a side, unless `more` says other."""
    settings: dict[str, Any] = {
        "model_channels": 256,
        "channel_mult": MULTIPLIERS[size],
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_head_channels": 64,
    }
    return UNetConfig(
        image_size=size,
        out_channels=6,
        attention_resolutions=tuple(size // p for p in pixels),
        use_scale_shift_norm=True,
        resblock_updown=True,
        **{**settings, **more},
    )


def _recipe(
    name: str,
    summary: str,
    net: UNetConfig,
    steps: int,
    advice: Advice,
    published: dict[str, str],
    *,
    process: ProcessConfig = LINEAR,
    batch: int = 256,
    lr: float = 1e-4,
    low_size: int | None = None,
) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=net.size[0], flip=True),
        net=net,
        process=process,
        objective=_OBJECTIVE,
        train=paper_training(batch=batch, steps=steps, lr=lr, precision="fp16"),
        advice=advice,
        published=published,
        measured=NOT_RUN,
        low_size=low_size,
    )


def imagenet_64() -> Recipe:
    """ImageNet 64x64 with classes: 296M parameters, 192 channels, three blocks a level, dropout 0.1, cosine schedule,
    540K updates of 2,048 images. The only released model with the new order of queries, keys and values."""
    return _recipe(
        "adm-imagenet-64",
        "ADM for ImageNet 64x64, class-conditional, 296M parameters",
        _net(64, model_channels=192, num_res_blocks=3, dropout=0.1, use_new_attention_order=True, num_classes=1000),
        540_000,
        Advice(guidance=1.0, classifier="adm-imagenet-64-classifier"),
        {
            "FID (unguided, 250 steps)": "2.07 (without dropout 2.61)",
            "sFID": "4.29 (3.77)",
            "precision, recall": "0.74, 0.63 (0.73, 0.63)",
            "source": f"{_SOURCE}, Tables 5 and 11; guidance scale: Table 14",
            "file": "64x64_diffusion.pt",
        },
        process=COSINE,
        batch=2048,
        lr=3e-4,
    )


def imagenet_128() -> Recipe:
    """ImageNet 128x128 with classes: 422M parameters, 4.36M updates. Four heads at every resolution, not heads of 64
    channels as in the others."""
    return _recipe(
        "adm-imagenet-128",
        "ADM for ImageNet 128x128, class-conditional, 422M parameters",
        _net(128, num_heads=4, num_head_channels=-1, num_classes=1000),
        4_360_000,
        Advice(guidance=0.5, classifier="adm-imagenet-128-classifier"),
        {
            "FID (guided by 0.5, 250 steps)": "2.97; sFID 5.09, precision 0.78, recall 0.59",
            "FID (guided by 1.25, 25 DDIM steps)": "5.98; sFID 7.04, precision 0.78, recall 0.51",
            "FID (unguided, 250 steps)": "5.91; sFID 5.09, precision 0.70, recall 0.65",
            "source": f"{_SOURCE}, Tables 5, 11 and 14",
            "file": "128x128_diffusion.pt",
        },
    )


def imagenet_256() -> Recipe:
    """ImageNet 256x256 with classes: 554M parameters, 1.98M updates."""
    return _recipe(
        "adm-imagenet-256",
        "ADM for ImageNet 256x256, class-conditional, 554M parameters",
        _net(256, num_classes=1000),
        1_980_000,
        Advice(guidance=1.0, classifier="adm-imagenet-256-classifier"),
        {
            "FID (guided by 1.0, 250 steps)": "4.59; sFID 5.25, IS 186.70, precision 0.82, recall 0.52",
            "FID (guided by 10.0, 250 steps)": "9.11; sFID 10.93, IS 283.92, precision 0.88, recall 0.32",
            "FID (guided by 2.5, 25 DDIM steps)": "5.44; sFID 5.32, precision 0.81, recall 0.49",
            "FID (unguided, 250 steps)": "10.94; sFID 6.02, IS 100.98, precision 0.69, recall 0.63",
            "source": f"{_SOURCE}, Tables 4, 5, 11 and 14",
            "file": "256x256_diffusion.pt",
        },
    )


def imagenet_256_unconditional() -> Recipe:
    """ImageNet 256x256 without classes, guided by the classifier of the conditional model."""
    return _recipe(
        "adm-imagenet-256-unconditional",
        "ADM for ImageNet 256x256, unconditional, 553M parameters",
        _net(256),
        2_000_000,
        Advice(guidance=10.0, classifier="adm-imagenet-256-classifier"),
        {
            "FID (guided by 10.0, 250 steps)": "12.00; sFID 10.40, IS 95.41, precision 0.76, recall 0.44",
            "FID (guided by 1.0, 250 steps)": "33.03; sFID 6.99, IS 32.92, precision 0.56, recall 0.65",
            "FID (unguided, 250 steps)": "26.21; sFID 6.35, IS 39.70, precision 0.61, recall 0.63",
            "source": f"{_SOURCE}, Table 4, whose caption says 2M updates of 256 images",
            "unverified": "learning rate: taken from the conditional model",
            "file": "256x256_diffusion_uncond.pt",
        },
    )


def imagenet_512() -> Recipe:
    """ImageNet 512x512 with classes: 559M parameters, 1.94M updates, half the width at full resolution."""
    return _recipe(
        "adm-imagenet-512",
        "ADM for ImageNet 512x512, class-conditional, 559M parameters",
        _net(512, num_classes=1000),
        1_940_000,
        Advice(guidance=4.0, classifier="adm-imagenet-512-classifier"),
        {
            "FID (guided by 4.0, 250 steps)": "7.72; sFID 6.57, IS 172.71, precision 0.87, recall 0.42",
            "FID (guided by 9.0, 25 DDIM steps)": "8.41; sFID 9.67, precision 0.83, recall 0.47",
            "FID (unguided, 250 steps)": "23.24; sFID 10.19, IS 58.06, precision 0.73, recall 0.60",
            "source": f"{_SOURCE}, Tables 5, 6, 11 and 14",
            "unverified": "fp16: the paper says so of all its models, the release samples this one in float32",
            "file": "512x512_diffusion.pt",
        },
    )


def imagenet_64_to_256() -> Recipe:
    """The class-conditional upsampler from 64x64 to 256x256: 312M parameters, four heads, 500K updates. Guidance is
    for the model below it only."""
    return _recipe(
        "adm-imagenet-64-to-256",
        "ADM's upsampler 64x64 to 256x256, class-conditional, 312M parameters",
        _net(256, model_channels=192, num_heads=4, num_head_channels=-1, num_classes=1000, super_resolution=True),
        500_000,
        Advice(),
        {
            "FID (250 + 250 steps, base guided)": "3.94; sFID 6.14, IS 215.84, precision 0.83, recall 0.53",
            "FID (250 + 250 steps, base unguided)": "7.49; sFID 5.13, IS 127.49, precision 0.72, recall 0.63",
            "source": f"{_SOURCE}, Tables 6 and 13",
            "file": "64_256_upsampler.pt",
        },
        low_size=64,
    )


def imagenet_128_to_512() -> Recipe:
    """The class-conditional upsampler from 128x128 to 512x512: 309M parameters, six levels of full width, 1.05M
    updates."""
    return _recipe(
        "adm-imagenet-128-to-512",
        "ADM's upsampler 128x128 to 512x512, class-conditional, 309M parameters",
        _net(
            512,
            pixels=(32, 16),
            model_channels=192,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_classes=1000,
            super_resolution=True,
        ),
        1_050_000,
        Advice(),
        {
            "FID (250 + 250 steps, base guided)": "3.85; sFID 5.86, IS 221.72, precision 0.84, recall 0.53",
            "FID (250 + 25 steps, base guided)": "4.11; sFID 9.57, IS 219.29, precision 0.83, recall 0.55",
            "FID (25 + 25 steps, base guided)": "5.96; sFID 12.10, IS 187.87, precision 0.81, recall 0.54",
            "FID (250 + 250 steps, base unguided)": "9.96; sFID 5.62, IS 121.78, precision 0.75, recall 0.64",
            "source": f"{_SOURCE}, Tables 6 and 13",
            "unverified": "attention at 32, 16 as in the released file; Table 13 says 32, 16, 8. The base's classifier "
            "was another one than adm-imagenet-128-classifier (batch 1,024, learning rate 6e-5)",
            "file": "128_512_upsampler.pt",
        },
        low_size=128,
    )


def _lsun(name: str, what: str, steps: int, published: dict[str, str], dropout: float = 0.1) -> Recipe:
    return _recipe(
        name,
        f"ADM for LSUN {what} 256x256, unconditional, 553M parameters",
        _net(256, dropout=dropout),
        steps,
        Advice(steps="1000"),
        published,
    )


def lsun_bedroom() -> Recipe:
    """LSUN bedrooms: 500K updates. A 250-step schedule of "90,60,60,20,20" was found by a sweep on this model."""
    return _lsun(
        "adm-lsun-bedroom-256",
        "bedrooms",
        500_000,
        {
            "FID (1000 steps)": "1.90; sFID 5.59, precision 0.66, recall 0.51",
            'FID (steps "90,60,60,20,20")': "2.02; sFID 6.12, precision 0.67, recall 0.50",
            "FID (250 steps)": "2.31; sFID 6.12, precision 0.65, recall 0.50",
            "source": f"{_SOURCE}, Tables 11 and 16",
            "file": "lsun_bedroom.pt",
        },
    )


def lsun_cat() -> Recipe:
    """LSUN cats: 200K updates."""
    return _lsun(
        "adm-lsun-cat-256",
        "cats",
        200_000,
        {
            "FID (1000 steps)": "5.57; sFID 6.69, precision 0.63, recall 0.52",
            'FID (steps "90,60,60,20,20")': "5.94; sFID 7.43, precision 0.62, recall 0.52",
            "FID (250 steps)": "7.03; sFID 8.24, precision 0.60, recall 0.53",
            "source": f"{_SOURCE}, Tables 11 and 16",
            "file": "lsun_cat.pt",
        },
    )


def lsun_horse() -> Recipe:
    """LSUN horses: 250K updates."""
    return _lsun(
        "adm-lsun-horse-256",
        "horses",
        250_000,
        {
            "FID (1000 steps)": "2.57; sFID 6.81, precision 0.71, recall 0.55",
            'FID (steps "90,60,60,20,20")': "2.83; sFID 7.08, precision 0.69, recall 0.56",
            "FID (250 steps)": "3.45; sFID 7.55, precision 0.68, recall 0.56",
            "source": f"{_SOURCE}, Tables 11 and 16",
            "file": "lsun_horse.pt",
        },
    )


def lsun_horse_without_dropout() -> Recipe:
    """LSUN horses without dropout, the paper's comparison: better sFID, worse FID."""
    return _lsun(
        "adm-lsun-horse-256-without-dropout",
        "horses",
        250_000,
        {
            "FID (1000 steps)": "2.95; sFID 5.94, precision 0.69, recall 0.55",
            "source": f"{_SOURCE}, Table 5",
            "unverified": "number of updates: taken from the model with dropout",
            "file": "lsun_horse_nodropout.pt",
        },
        dropout=0.0,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "adm-imagenet-64": imagenet_64,
    "adm-imagenet-128": imagenet_128,
    "adm-imagenet-256": imagenet_256,
    "adm-imagenet-256-unconditional": imagenet_256_unconditional,
    "adm-imagenet-512": imagenet_512,
    "adm-imagenet-64-to-256": imagenet_64_to_256,
    "adm-imagenet-128-to-512": imagenet_128_to_512,
    "adm-lsun-bedroom-256": lsun_bedroom,
    "adm-lsun-cat-256": lsun_cat,
    "adm-lsun-horse-256": lsun_horse,
    "adm-lsun-horse-256-without-dropout": lsun_horse_without_dropout,
}
