"""The 12 published files of consistency models (Song et al. 2023, arXiv:2303.01469): three teachers and nine students.

The teachers (`edm_*`) are EDM's diffusion models. Students were distilled from them under the l2 or LPIPS distance
(`cd_*`), or trained without a teacher (`ct_*`). Flags are those of the release's scripts where they differ from its
defaults; figures those of the paper's tables, where distillation is by LPIPS.
"""

from __future__ import annotations

from typing import Any

from undiffuse.adapters.published_entry import CONSISTENCY, Published, Result
from undiffuse.config import SamplerConfig
from undiffuse.config.advice import advice, levels_of

_SONG = "Song et al. 2023, Table 2"
_IMAGENET = {
    "class_cond": True,
    "image_size": 64,
    "num_channels": 192,
    "num_res_blocks": 3,
    "num_head_channels": 64,
    "resblock_updown": True,
}
_LSUN = {
    "image_size": 256,
    "num_channels": 256,
    "num_head_channels": 64,
    "resblock_updown": True,
    "use_scale_shift_norm": False,
}
_DATA: dict[str, tuple[str, int, dict[str, Any]]] = {
    "imagenet64": ("ImageNet", 295_899_267, _IMAGENET),
    "bedroom256": ("LSUN bedrooms", 526_304_771, _LSUN),
    "cat256": ("LSUN cats", 526_304_771, _LSUN),
}
TEACHER = advice("40", solver="heun", grid="karras")
ONE_STEP = advice("1", solver="consistency")


def two_steps(between: int, steps: int) -> SamplerConfig:
    """Returns two-step sampling: from the noisiest level, over level number `between` of `steps` on Karras' grid.

    The authors state it as `ts` "0,BETWEEN,LAST", whose last level is that of the finished image.
    """
    return advice("2", solver="consistency", grid=levels_of((0, between), steps))


def _file(name: str, data: str, mode: str, results: tuple[Result, ...] = (), **about: Any) -> Published:
    what, parameters, flags = _DATA[data]
    return Published(
        name=name,
        file=f"{name}.pt",
        family=CONSISTENCY,
        data=what,
        parameters=parameters,
        flags={"training_mode": mode, **flags},
        url=f"https://openaipublic.blob.core.windows.net/consistency/{name}.pt",
        page="https://github.com/openai/consistency_models",
        licence="MIT; its model card: for research, not to be deployed commercially",
        paper="Consistency Models, arXiv:2303.01469",
        results=results,
        source=_SONG if results else "",
        **about,
    )


def _teacher(data: str, fid: float) -> Published:
    results = (Result(steps="40", solver="heun", fid=fid),)
    return _file(f"edm_{data}_ema", data, "edm", results, sampling=TEACHER)


def _student(name: str, data: str, mode: str, *fids: float, between: int | None = None, steps: int = 40) -> Published:
    """A consistency model with the FIDs of one and of two steps; `between` as in `two_steps`, None if not published."""
    results = tuple(Result(steps=str(n), solver="consistency", fid=fid) for n, fid in enumerate(fids, 1))
    if between is None:
        return _file(name, data, mode, results, sampling=ONE_STEP)
    return _file(name, data, mode, results, sampling=two_steps(between, steps), also=(ONE_STEP,))


_CD, _CT = "consistency_distillation", "consistency_training"

CONSISTENCY_FILES = (
    _teacher("imagenet64", 2.44),
    _student("cd_imagenet64_l2", "imagenet64", _CD, between=22),
    _student("cd_imagenet64_lpips", "imagenet64", _CD, 6.20, 4.70, between=22),
    _student("ct_imagenet64", "imagenet64", _CT, 13.0, 11.1, between=106, steps=201),
    _teacher("bedroom256", 3.57),
    _student("cd_bedroom256_l2", "bedroom256", _CD, between=18),
    _student("cd_bedroom256_lpips", "bedroom256", _CD, 7.80, 5.22, between=17),
    _student("ct_bedroom256", "bedroom256", _CT, 16.0, 7.85, between=67, steps=151),
    _teacher("cat256", 6.69),
    _student("cd_cat256_l2", "cat256", _CD),
    _student("cd_cat256_lpips", "cat256", _CD, 11.0, 8.84),
    _student("ct_cat256", "cat256", _CT, 20.7, 11.7, between=62, steps=151),
)
