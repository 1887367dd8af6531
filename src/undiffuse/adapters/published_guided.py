"""The 15 published files of guided diffusion (Dhariwal & Nichol 2021, arXiv:2105.05233).

Flags are those of the release's README where they differ from its defaults; figures those of the paper's tables. OpenAI
published no hashes: the one here was recorded by many independent users of that file.
"""

from __future__ import annotations

from typing import Any

from undiffuse.adapters.published_entry import CLASSIFIER, GUIDED, UPSAMPLER, Published, Result
from undiffuse.config.advice import advice

_ADM = "Dhariwal & Nichol 2021"
_SWEPT = "90,60,60,20,20"  # sections found by a sweep on the bedrooms


def _adm(name: str, parameters: int, flags: dict[str, Any], of: str = "", **about: Any) -> Published:
    return Published(
        name=name,
        file=f"{name}.pt",
        family=GUIDED + of,
        parameters=parameters,
        flags=flags,
        url=f"https://openaipublic.blob.core.windows.net/diffusion/jul-2021/{name}.pt",
        page="https://github.com/openai/guided-diffusion",
        licence="MIT; its model card: for research, not to be deployed commercially",
        paper="Diffusion Models Beat GANs on Image Synthesis, arXiv:2105.05233",
        **about,
    )


def _adm_unet(name: str, parameters: int, flags: dict[str, Any], of: str = "", **about: Any) -> Published:
    """256 channels in heads of 64, attention at 32, 16 and 8 pixels, BigGAN resampling, unless `flags` say other."""
    shared = {
        "num_channels": 256,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "resblock_updown": True,
        "learn_sigma": True,
    }
    return _adm(name, parameters, {**shared, **flags}, of, **about)


def _lsun(name: str, what: str, results: tuple[Result, ...], source: str, dropout: float = 0.1) -> Published:
    return _adm_unet(
        name,
        552_814_086,
        {"image_size": 256, "dropout": dropout},
        data=f"LSUN {what}",
        sampling=advice("1000"),
        results=results,
        source=f"{_ADM}, {source}",
    )


def _adm_classifier(size: int, parameters: int, depth: int = 2, schedule: str = "linear") -> Published:
    flags = {"image_size": size, "classifier_depth": depth}
    return _adm(f"{size}x{size}_classifier", parameters, flags, CLASSIFIER, data="ImageNet", schedule=schedule)


FILES = (
    _adm_unet(
        "64x64_diffusion",
        295_904_454,
        {
            "image_size": 64,
            "num_channels": 192,
            "num_res_blocks": 3,
            "dropout": 0.1,
            "class_cond": True,
            "use_new_attention_order": True,
            "noise_schedule": "cosine",
        },
        data="ImageNet",
        sampling=advice(guidance=1.0, classifier="64x64_classifier"),
        results=(Result(steps="250", fid=2.07, sfid=4.29, precision=0.74, recall=0.63),),
        source=f"{_ADM}, Table 5; guidance scale: Table 14",
    ),
    _adm_unet(
        "128x128_diffusion",
        421_529_606,
        {"image_size": 128, "num_head_channels": -1, "class_cond": True},
        data="ImageNet",
        sampling=advice(guidance=0.5, classifier="128x128_classifier"),
        results=(
            Result(steps="250", guidance=0.5, fid=2.97, sfid=5.09, precision=0.78, recall=0.59),
            Result(steps="ddim25", solver="ddim", guidance=1.25, fid=5.98, sfid=7.04, precision=0.78, recall=0.51),
            Result(steps="250", fid=5.91, sfid=5.09, precision=0.70, recall=0.65),
        ),
        source=f"{_ADM}, Tables 5 and 14",
    ),
    _adm_unet(
        "256x256_diffusion",
        553_838_086,
        {"image_size": 256, "class_cond": True},
        data="ImageNet",
        sampling=advice(guidance=1.0, classifier="256x256_classifier"),
        results=(
            Result(steps="250", guidance=1, fid=4.59, sfid=5.25, inception=186.70, precision=0.82, recall=0.52),
            Result(steps="250", guidance=10, fid=9.11, sfid=10.93, inception=283.92, precision=0.88, recall=0.32),
            Result(steps="ddim25", solver="ddim", guidance=2.5, fid=5.44, sfid=5.32, precision=0.81, recall=0.49),
            Result(steps="250", fid=10.94, sfid=6.02, inception=100.98, precision=0.69, recall=0.63),
        ),
        source=f"{_ADM}, Tables 4, 5 and 14",
    ),
    _adm_unet(
        "256x256_diffusion_uncond",
        552_814_086,
        {"image_size": 256},
        data="ImageNet",
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        size=2_211_383_297,
        sampling=advice(guidance=10.0, classifier="256x256_classifier"),
        results=(
            Result(steps="250", guidance=10, fid=12.00, sfid=10.40, inception=95.41, precision=0.76, recall=0.44),
            Result(steps="250", guidance=1, fid=33.03, sfid=6.99, inception=32.92, precision=0.56, recall=0.65),
            Result(steps="250", fid=26.21, sfid=6.35, inception=39.70, precision=0.61, recall=0.63),
        ),
        source=f"{_ADM}, Table 4",
    ),
    _adm_unet(
        "512x512_diffusion",
        558_997_638,
        {"image_size": 512, "class_cond": True},
        data="ImageNet",
        sampling=advice(guidance=4.0, classifier="512x512_classifier"),
        results=(
            Result(steps="250", guidance=4, fid=7.72, sfid=6.57, inception=172.71, precision=0.87, recall=0.42),
            Result(steps="ddim25", solver="ddim", guidance=9, fid=8.41, sfid=9.67, precision=0.83, recall=0.47),
            Result(steps="250", fid=23.24, sfid=10.19, inception=58.06, precision=0.73, recall=0.60),
        ),
        source=f"{_ADM}, Tables 5, 6 and 14",
    ),
    _adm_unet(
        "64_256_upsampler",
        311_795_910,
        {"large_size": 256, "small_size": 64, "num_channels": 192, "num_head_channels": -1, "class_cond": True},
        UPSAMPLER,
        data="ImageNet",
        sampling=advice(),
        base="64x64_diffusion",
        results=(
            Result(
                steps="250",
                fid=3.94,
                sfid=6.14,
                inception=215.84,
                precision=0.83,
                recall=0.53,
                note="base guided, 250 steps",
            ),
            Result(
                steps="250",
                fid=7.49,
                sfid=5.13,
                inception=127.49,
                precision=0.72,
                recall=0.63,
                note="base unguided, 250 steps",
            ),
        ),
        source=f"{_ADM}, Table 6",
    ),
    _adm_unet(
        "128_512_upsampler",
        308_835_270,
        {
            "large_size": 512,
            "small_size": 128,
            "num_channels": 192,
            "attention_resolutions": "32,16",
            "class_cond": True,
        },
        UPSAMPLER,
        data="ImageNet",
        sampling=advice(),
        base="128x128_diffusion",
        results=(
            Result(
                steps="250",
                fid=3.85,
                sfid=5.86,
                inception=221.72,
                precision=0.84,
                recall=0.53,
                note="base guided, 250 steps",
            ),
            Result(
                steps="25",
                fid=4.11,
                sfid=9.57,
                inception=219.29,
                precision=0.83,
                recall=0.55,
                note="base guided, 250 steps",
            ),
            Result(
                steps="25",
                fid=5.96,
                sfid=12.10,
                inception=187.87,
                precision=0.81,
                recall=0.54,
                note="base guided, 25 steps",
            ),
            Result(
                steps="250",
                fid=9.96,
                sfid=5.62,
                inception=121.78,
                precision=0.75,
                recall=0.64,
                note="base unguided, 250 steps",
            ),
        ),
        source=f"{_ADM}, Table 6; the base's classifier was another one than 128x128_classifier",
    ),
    _lsun(
        "lsun_bedroom",
        "bedrooms",
        (
            Result(steps="1000", fid=1.90, sfid=5.59, precision=0.66, recall=0.51),
            Result(steps=_SWEPT, fid=2.02, sfid=6.12, precision=0.67, recall=0.50),
            Result(steps="250", fid=2.31, sfid=6.12, precision=0.65, recall=0.50),
        ),
        "Table 16",
    ),
    _lsun(
        "lsun_cat",
        "cats",
        (
            Result(steps="1000", fid=5.57, sfid=6.69, precision=0.63, recall=0.52),
            Result(steps=_SWEPT, fid=5.94, sfid=7.43, precision=0.62, recall=0.52),
            Result(steps="250", fid=7.03, sfid=8.24, precision=0.60, recall=0.53),
        ),
        "Table 16",
    ),
    _lsun(
        "lsun_horse",
        "horses",
        (
            Result(steps="1000", fid=2.57, sfid=6.81, precision=0.71, recall=0.55),
            Result(steps=_SWEPT, fid=2.83, sfid=7.08, precision=0.69, recall=0.56),
            Result(steps="250", fid=3.45, sfid=7.55, precision=0.68, recall=0.56),
        ),
        "Table 16",
    ),
    _lsun(
        "lsun_horse_nodropout",
        "horses",
        (Result(steps="1000", fid=2.95, sfid=5.94, precision=0.69, recall=0.55),),
        "Table 5",
        dropout=0.0,
    ),
    _adm_classifier(64, 65_438_568, depth=4, schedule="cosine"),
    _adm_classifier(128, 42_568_040),
    _adm_classifier(256, 54_096_360),
    _adm_classifier(512, 54_448_360),
)
