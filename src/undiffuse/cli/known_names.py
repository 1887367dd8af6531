"""Names that a shell completes. They are repeated here because the modules that define them import torch.

`tests/cli/test_completion.py` fails if one is missing.
"""

from __future__ import annotations

SHIPPED = (
    "fashion-mnist-32", "fashion-mnist-32-classifier", "fashion-mnist-32-judge", "fashion-mnist-32-student", "emoji-32",
    "emoji-32-classifier",
)  # fmt: skip
PUBLISHED = (
    "64x64_diffusion", "128x128_diffusion", "256x256_diffusion", "256x256_diffusion_uncond", "512x512_diffusion",
    "64_256_upsampler", "128_512_upsampler", "lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_horse_nodropout",
    "64x64_classifier", "128x128_classifier", "256x256_classifier", "512x512_classifier", "cifar10_uncond_50M_500K",
    "cifar10_uncond_vlb_50M_500K", "imagenet64_uncond_100M_1500K", "imagenet64_uncond_vlb_100M_1500K",
    "imagenet64_cond_270M_250K", "upsample_cond_500K", "lsun_uncond_100M_1200K_bs128", "lsun_uncond_100M_2400K_bs64",
    "edm_imagenet64_ema", "cd_imagenet64_l2", "cd_imagenet64_lpips", "ct_imagenet64", "edm_bedroom256_ema",
    "cd_bedroom256_l2", "cd_bedroom256_lpips", "ct_bedroom256", "edm_cat256_ema", "cd_cat256_l2", "cd_cat256_lpips",
    "ct_cat256", "ddpm_ema_cifar10", "ddpm_cifar10", "ddpm_ema_lsun_bedroom", "ddpm_lsun_bedroom", "ddpm_ema_lsun_cat",
    "ddpm_lsun_cat", "ddpm_ema_lsun_church", "ddpm_lsun_church", "ddpm_celeba",
)  # fmt: skip
RECIPES = (
    *SHIPPED[:3], "emoji-32", "emoji-32-classifier", "smoke", "tiny", "general-32", "general-64", "general-128",
    "general-32-classifier",
    "general-64-classifier", "general-128-classifier", "general-32-v", "general-32-edm", "general-32-flow",
    "general-64-v", "general-64-edm", "general-64-flow", "emoji-64", "emoji-64-classifier", "emoji-64-judge",
    "emoji-32-judge", "edm-imagenet-64",
    "edm-lsun-bedroom-256", "edm-lsun-cat-256", "ddpm-cifar10-32", "ddpm-celebahq-256",
    "ddpm-lsun-bedroom-256", "ddpm-lsun-cat-256", "ddpm-lsun-church-256", "improved-cifar10-32",
    "improved-cifar10-32-vlb", "improved-imagenet-64", "improved-imagenet-64-vlb", "improved-imagenet-64-conditional",
    "improved-imagenet-64-to-256", "improved-lsun-bedroom-256", "improved-lsun-bedroom-256-slow", "adm-imagenet-64",
    "adm-imagenet-128", "adm-imagenet-256", "adm-imagenet-256-unconditional", "adm-imagenet-512",
    "adm-imagenet-64-to-256", "adm-imagenet-128-to-512", "adm-lsun-bedroom-256", "adm-lsun-cat-256",
    "adm-lsun-horse-256", "adm-lsun-horse-256-without-dropout", "adm-imagenet-64-classifier",
    "adm-imagenet-128-classifier", "adm-imagenet-256-classifier", "adm-imagenet-512-classifier",
)  # fmt: skip
EXTRACTORS = (
    "inception", "inception:clean", "inception:pytorch-fid", "inception:torchmetrics", "efflite", "fashion", "dinov2",
    "clip", "cmmd",
)  # fmt: skip
DATA = ("fashion-mnist", "fashion-mnist:test")
