"""The 8 published files of improved diffusion, and 9 with DDPM's network: eight conversions of its authors' weights to
PyTorch and DDIM's CelebA model.

Flags are those of the releases' READMEs where they differ from the release's defaults, those of DDPM's network in the
same words. Figures are those of the papers' tables; MD5 sums are those in DDIM's repository.
"""

from __future__ import annotations

from typing import Any

from undiffuse.adapters.published_entry import DDPM, IMPROVED, UPSAMPLER, Published, Result
from undiffuse.config.advice import advice

_ADM = "Dhariwal & Nichol 2021"
_HO = "Ho et al. 2020"
_SONG = "Song et al. 2021"
_SECOND_HAND = "Nichol & Dhariwal 2021 (secondary transcription)"


def _improved(name: str, parameters: int, flags: dict[str, Any], of: str = "", **about: Any) -> Published:
    return Published(
        name=name,
        file=f"{name}.pt",
        family=IMPROVED + of,
        parameters=parameters,
        flags={"learn_sigma": True, **flags},
        url=f"https://openaipublic.blob.core.windows.net/diffusion/march-2021/{name}.pt",
        page="https://github.com/openai/improved-diffusion",
        licence="MIT",
        paper="Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672",
        **about,
    )


_COSINE_4000 = {"noise_schedule": "cosine", "diffusion_steps": 4000}
_PLAIN = {"rescale_timesteps": False, "rescale_learned_sigmas": False}
_CIFAR = {"image_size": 32, "num_res_blocks": 3, "dropout": 0.3, **_COSINE_4000}
_IMAGENET_64 = {"image_size": 64, "num_res_blocks": 3, **_COSINE_4000}
_BEDROOM = {
    "image_size": 256,
    "num_heads": 1,
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
    "diffusion_steps": 1000,
    **_PLAIN,
}

IMPROVED_FILES = (
    _improved(
        "cifar10_uncond_50M_500K",
        52_546_438,
        _CIFAR,
        data="CIFAR-10",
        sampling=advice("4000"),
        results=(Result(steps="4000", fid=3.19, bits=3.17),),
        source=_SECOND_HAND,
    ),
    _improved(
        "cifar10_uncond_vlb_50M_500K",
        52_546_438,
        {**_CIFAR, "use_kl": True},
        data="CIFAR-10",
        sampling=advice("4000"),
        results=(Result(steps="4000", fid=11.47, bits=2.94),),
        source=_SECOND_HAND,
    ),
    _improved(
        "imagenet64_uncond_100M_1500K",
        121_063_942,
        _IMAGENET_64,
        data="ImageNet",
        sampling=advice("4000"),
        results=(Result(steps="4000", fid=19.2, bits=3.57),),
        source=_SECOND_HAND,
    ),
    _improved(
        "imagenet64_uncond_vlb_100M_1500K",
        121_063_942,
        {**_IMAGENET_64, "use_kl": True},
        data="ImageNet",
        sampling=advice("4000"),
        results=(Result(steps="4000", fid=40.1, bits=3.53),),
        source=_SECOND_HAND,
    ),
    _improved(
        "imagenet64_cond_270M_250K",
        273_049_350,
        {**_IMAGENET_64, "num_channels": 192, "class_cond": True, **_PLAIN},
        data="ImageNet",
        sampling=advice(),
        results=(Result(steps="250", fid=2.92, sfid=3.79, precision=0.74, recall=0.62),),
        source=f"{_SECOND_HAND}; sFID, precision and recall: {_ADM}, Table 5 (the paper, with k = 5: 0.82, 0.71)",
    ),
    _improved(
        "upsample_cond_500K",
        279_792_390,
        {
            "large_size": 256,
            "small_size": 64,
            "num_channels": 192,
            "class_cond": True,
            "diffusion_steps": 4000,
            **_PLAIN,
        },
        UPSAMPLER,
        data="ImageNet",
        sampling=advice(),
        base="imagenet64_cond_270M_250K",
        results=(Result(steps="250", fid=12.26, sfid=5.42, precision=0.70, recall=0.62, note="base 250 steps"),),
        source=f"{_ADM}, Table 5",
    ),
    _improved(
        "lsun_uncond_100M_1200K_bs128",
        113_676_678,
        _BEDROOM,
        data="LSUN bedrooms",
        sampling=advice("1000"),
        results=(Result(steps="1000", fid=4.24, sfid=8.21, precision=0.62, recall=0.46),),
        source=f"{_ADM}, Table 5",
        unverified="which of the two files of bedrooms the figures belong to",
    ),
    _improved(
        "lsun_uncond_100M_2400K_bs64",
        113_676_678,
        _BEDROOM,
        data="LSUN bedrooms",
        sampling=advice("1000"),
    ),
)


_DDPM_CIFAR = {"image_size": 32, "channel_mult": "1,2,2,2", "attention_resolutions": "16", "dropout": 0.1}
_DDPM_CELEBA = {"image_size": 64, "channel_mult": "1,2,2,2,4", "attention_resolutions": "16", "dropout": 0.1}
_DDPM_256 = {"image_size": 256, "attention_resolutions": "16", "sigma_small": True}


def _ddpm(data: str, name: str, parameters: int, flags: dict[str, Any], **about: Any) -> Published:
    """One head of attention at 16x16, conditioning by addition, fixed variance."""
    return Published(
        name=f"ddpm_{name}",
        family=DDPM,
        data=data,
        parameters=parameters,
        flags={"num_heads": 1, "use_scale_shift_norm": False, **flags},
        page="https://github.com/ermongroup/ddim",
        sampling=advice("1000"),
        **about,
    )


def _converted(
    what: str, data: str, step: int, urls: tuple[str, str], md5s: tuple[str, str], *results: Result, source: str = ""
) -> tuple[Published, Published]:
    """The two conversions of one of the authors' models to PyTorch: the moving average, and the weights as trained."""
    small = what == "cifar10"
    both = [
        _ddpm(
            data,
            prefix + what,
            35_746_307 if small else 113_673_219,
            _DDPM_CIFAR if small else _DDPM_256,
            file=f"{prefix}diffusion_{what}_model/model-{step}.ckpt",
            url=f"https://heibox.uni-heidelberg.de/f/{url}/?dl=1",
            md5=md5,
            licence="none stated by the authors of the weights",
            paper="Denoising Diffusion Probabilistic Models, arXiv:2006.11239",
            results=results if prefix else (),
            source=source if prefix else "",
        )
        for prefix, url, md5 in zip(("ema_", ""), urls, md5s, strict=True)
    ]
    return both[0], both[1]


DDPM_FILES = (
    *_converted(
        "cifar10",
        "CIFAR-10",
        790_000,
        ("2e4f01e2d9ee49bab1d5", "869980b53bf5416c8a28"),
        ("1fa350b952534ae442b1d5235cce5cd3", "82ed3067fd1002f5cf4c339fb80c4669"),
        Result(steps="1000", fid=3.17, inception=9.46, bits=3.75),
        Result(steps="1000", fid=5.24, note="test images as reference"),
        Result(steps="ddim100", solver="ddim", fid=4.16, note="steps spaced by their squares"),
        Result(steps="ddim50", solver="ddim", fid=4.67, note="steps spaced by their squares"),
        source=f"{_HO}, Table 1 (FID: training images as reference, bits: test images); DDIM: {_SONG}, Table 1",
    ),
    *_converted(
        "lsun_bedroom",
        "LSUN bedrooms",
        2_388_000,
        ("b95206528f384185889b", "f179d4f21ebc4d43bbfe"),
        ("1921fa46b66a3665e450e42f36c2720f", "f70280ac0e08b8e696f42cb8e948ff1c"),
        Result(steps="1000", fid=6.36),
        Result(steps="ddim100", solver="ddim", fid=6.62),
        Result(steps="ddim50", solver="ddim", fid=6.75),
        source=f"{_HO}, Figure 17; DDIM: {_SONG}, Table 3",
    ),
    *_converted(
        "lsun_cat",
        "LSUN cats",
        1_761_000,
        ("0701aac3aa69457bbe34", "fac870bd988348eab88e"),
        ("646f23f4821f2459b8bafc57fd824558", "bbee0e7c3d7abfb6e2539eaf2fb9987b"),
        Result(steps="1000", fid=19.75),
        source=f"{_HO}, Figure 19",
    ),
    *_converted(
        "lsun_church",
        "LSUN churches",
        4_432_000,
        ("44ccb50ef3c6436db52e", "2711a6f712e34b06b9d8"),
        ("fdc68a23938c2397caba4a260bc2445f", "eb619b8a5ab95ef80f94ce8a5488dae3"),
        Result(steps="1000", fid=7.89),
        Result(steps="ddim100", solver="ddim", fid=10.58),
        Result(steps="ddim50", solver="ddim", fid=10.84),
        source=f"{_HO}, Figure 16; DDIM: {_SONG}, Table 3",
    ),
    _ddpm(
        "CelebA",
        "celeba",
        78_700_803,
        _DDPM_CELEBA,
        file="celeba/ckpt.pth",
        licence="MIT",
        paper="Denoising Diffusion Implicit Models, arXiv:2010.02502",
        results=(
            Result(steps="1000", fid=3.26),
            Result(steps="1000", solver="ddim", fid=3.51),
            Result(steps="ddim100", solver="ddim", fid=6.53),
            Result(steps="ddim50", solver="ddim", fid=9.17),
        ),
        source=f"{_SONG}, Table 1",
    ),
)
