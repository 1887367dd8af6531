"""CLIP's image towers: the original's numbers, its files, its preparation of images, and what the distances are called.

The comparison with other implementations, from which the frozen numbers come, is in test_parity_networks.py."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.drawn import drawn
from undiffuse.downloads import DownloadError
from undiffuse.metrics import MetricError, cmmd, kid
from undiffuse.metrics.extractors import CLIP_MODELS, CLIP_PROTOCOLS, ClipExtractor, clip, clip_tower, resize
from undiffuse.metrics.extractors.clip import ClipModel, clip_card
from undiffuse.metrics.extractors.clip_tower import ImageTower, tower_weights

SMALL = (32, 8, 128, 2, 2, 24)  # size, patch, width, depth, heads, dimension


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tower(seed_scale: float = 0.3) -> ImageTower:
    net = ImageTower(*SMALL).requires_grad_(False)
    net.load_state_dict(drawn(net.state_dict(), seed_scale))
    return net


def inputs() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).standard_normal((2, 3, 32, 32)).astype("float32"))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels 0..255 [B, 3, H, W] by the published mean and deviation."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# The network

EXPECTED = [
    [7.766959, -0.848845, -5.945243, 6.194725, 1.943843, -5.552548],
    [0.13506, -0.132176, -4.754043, -2.612621, 1.857119, -3.985684],
]
TOLERANCE = 1e-4  # 1.6e-5 is seen between float32 and float64


def test_the_tower_gives_the_originals_numbers() -> None:
    assert (tower()(inputs())[:, :6] - torch.tensor(EXPECTED)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "change",
    ["exact gelu", "gelu by tanh", "mean of tokens", "no first norm", "other epsilon", "no class token", "one head"],
)
def test_each_quirk_of_the_tower_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tower()
    if change in ("exact gelu", "gelu by tanh"):
        approximate = "tanh" if change == "gelu by tanh" else "none"
        monkeypatch.setattr(
            clip_tower.Perceptron,
            "forward",
            lambda self, x: self.c_proj(nn.functional.gelu(self.c_fc(x), approximate=approximate)),
        )
    elif change == "mean of tokens":
        norm = net.ln_post
        blocks = net.transformer
        net.ln_post = nn.Identity()  # type: ignore[assignment]
        net.transformer = nn.Sequential(blocks, Mean(norm))  # type: ignore[assignment]
    elif change == "no first norm":
        net.ln_pre = nn.Identity()  # type: ignore[assignment]
    elif change == "other epsilon":
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-3
    elif change == "no class token":
        net.class_embedding.data.zero_()
    else:
        net.transformer.resblocks[0].attn.heads = 1  # type: ignore[union-attr]
    assert (net(inputs())[:, :6] - torch.tensor(EXPECTED)).abs().max() > 10 * TOLERANCE


class Mean(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "numbers"), [("ViT-B/32", 87_849_216), ("ViT-L/14", 303_966_208), ("ViT-L/14@336px", 304_293_888)]
)
def test_the_towers_have_the_published_layout(name: str, numbers: int) -> None:
    with torch.device("meta"):
        state = CLIP_MODELS[name].build().state_dict()
    assert sum(t.numel() for t in state.values()) == numbers
    about = CLIP_MODELS[name]
    assert state["transformer.resblocks.3.attn.in_proj_weight"].shape == (3 * about.width, about.width)
    assert about.url == f"https://openaipublic.azureedge.net/clip/models/{about.sha256}/{about.file}"
    # Half precision for this tower leaves room in the file for the other one.
    assert 1.5 < about.bytes / (2 * numbers) < 2.1


# Files


def hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights by the other names."""
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    out = {"vision_model.embeddings.position_ids": torch.arange(17)[None], "logit_scale": torch.ones(())}
    for name, tensor in state.items():
        if name == "proj":
            out["visual_projection.weight"] = tensor.T.contiguous()
        elif ".attn.in_proj_" in name:
            block, _, kind = name.partition(".attn.in_proj_")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                where = block.replace("transformer.resblocks", "encoder.layers")
                out[f"vision_model.{where}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
        else:
            for old, new in (
                ("transformer.resblocks", "encoder.layers"),
                ("ln_pre", "pre_layrnorm"),
                ("ln_post", "post_layernorm"),
                ("ln_", "layer_norm"),
                ("attn", "self_attn"),
                ("c_fc", "fc1"),
                ("c_proj", "fc2"),
            ):
                name = name.replace(old, new)
            out[f"vision_model.{names.get(name, name)}"] = tensor
    return out


def test_both_namings_give_the_same_weights() -> None:
    state = dict(tower().state_dict())
    whole = {f"visual.{n}": t for n, t in state.items()} | {"token_embedding.weight": torch.zeros(3, 2)}
    for given in (whole, hugging_face(state)):
        found = tower_weights(given)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


TINY = ClipModel(
    name="tiny", size=32, patch=8, width=64, depth=2, dimension=16, file="tiny.pt", sha256="0" * 64, bytes=1
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A small model among the published ones, and its weights in OpenAI's naming."""
    monkeypatch.setitem(CLIP_MODELS, "tiny", TINY)
    return {f"visual.{name}": tensor for name, tensor in drawn(TINY.build().state_dict()).items()}


def published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small model's published file be this one."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    values = {**{f: getattr(TINY, f) for f in TINY.__dataclass_fields__}, "sha256": digest, "bytes": len(content)}
    monkeypatch.setitem(CLIP_MODELS, "tiny", ClipModel(**values))


class Original(nn.Module):
    """The tower as its authors lay it out, with torch's own attention: another implementation to compare with."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, dimension: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(OriginalBlock(width, heads) for _ in range(depth))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, dimension))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(x).reshape(x.shape[0], self.proj.shape[0], -1).permute(0, 2, 1)
        first = self.class_embedding + torch.zeros(x.shape[0], 1, self.proj.shape[0])
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x)
        return self.ln_post(x[:, 0, :]) @ self.proj


class OriginalBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGelu(), c_proj=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Whole(nn.Module):
    """A CLIP with something in the other tower's place, halved as the published files are."""

    def __init__(self, visual: Original) -> None:
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(5, 8)
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.visual(x), self.token_embedding(text).sum() * self.logit_scale


@pytest.mark.parametrize("how", ["trace", "state", "safetensors", "hugging-face"])
def test_files_of_every_kind_give_the_original_features(
    how: str, tiny: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is written by torch from another implementation; its own answer is compared with ours."""
    original = Original(32, 8, 64, 2, 1, 16)
    original.load_state_dict({name.removeprefix("visual."): tensor.half() for name, tensor in tiny.items()})
    whole = Whole(original).eval().requires_grad_(False)
    images = noise(3, 32, 32, 3)
    ready = normalised(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = whole.visual(ready)
    for name, parameter in whole.named_parameters():
        if "ln_" not in name and "embedding" not in name:
            parameter.data = parameter.data.half()
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    path = tmp_path / ("model.safetensors" if how in ("safetensors", "hugging-face") else "model.pt")
    if how == "trace":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(whole.float(), (ready[:1], torch.tensor([1]))), str(path))
    elif how == "state":
        torch.save(state, path)
    elif how == "safetensors":
        save_file(state, path)
    else:
        save_file(hugging_face({n.removeprefix("visual."): t for n, t in state.items() if "visual" in n}), path)
    published(path, monkeypatch)
    for protocol in CLIP_PROTOCOLS:  # square images of the tower's size: nothing to resize or crop
        extractor = ClipExtractor.load(path, protocol, model="tiny")
        torch.testing.assert_close(extractor(images).features, expected, atol=2e-4, rtol=1e-4)
    assert extractor.card.extractor == "clip-tiny"


def test_other_files_are_refused_before_they_are_opened(
    tiny: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.pt"
    torch.save(tiny, path)

    def opened(*_: Any) -> None:
        raise AssertionError("the file was opened")

    with monkeypatch.context() as patch:
        patch.setattr(clip, "_read", opened)
        with pytest.raises(MetricError, match="not the published file of CLIP tiny"):
            ClipExtractor.load(path, model="tiny")
        with pytest.raises(MetricError, match="no file"):
            ClipExtractor.load(tmp_path / "absent.pt")
        content = path.read_bytes()
        values = {f: getattr(TINY, f) for f in TINY.__dataclass_fields__}
        digest = hashlib.sha256(content).hexdigest()
        for wrong in ({"bytes": len(content), "sha256": "ab" * 32}, {"bytes": len(content) + 1, "sha256": digest}):
            patch.setitem(CLIP_MODELS, "tiny", ClipModel(**{**values, **wrong}))
            with pytest.raises(MetricError, match="not the published file"):
                ClipExtractor.load(path, model="tiny")
    extractor = ClipExtractor.load(path, model="tiny", verify=False)
    assert extractor.card.extractor == "clip-tiny-other-weights"
    assert extractor.card.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(MetricError, match="are not the weights of CLIP ViT-B/32"):
        ClipExtractor.load(path, verify=False)
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(MetricError, match="not a readable safetensors"):
        ClipExtractor.load(tmp_path / "x.safetensors", verify=False)
    (tmp_path / "x.pt").write_bytes(b"text")
    with pytest.raises(MetricError, match="not a plain file"):
        ClipExtractor.load(tmp_path / "x.pt", verify=False)


def test_incomplete_weights_are_refused(tiny: dict[str, torch.Tensor]) -> None:
    other = hugging_face({name.removeprefix("visual."): tensor for name, tensor in tiny.items()})
    del other["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(MetricError, match=r"resblocks\.1\.attn\.in_proj_weight is missing"):
        ClipExtractor(other, model="tiny")
    with pytest.raises(MetricError, match="missing"):
        ClipExtractor({}, model="tiny")
    with pytest.raises(MetricError, match="unknown protocol"):
        ClipExtractor(tiny, "adm", model="tiny")
    with pytest.raises(MetricError, match="unknown CLIP model"):
        ClipExtractor(tiny, model="ViT-H/14")


def test_the_published_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="3035c92b.*ViT-L-14-336px.pt.*by hand"):
        ClipExtractor.load(protocol="cmmd")
    with pytest.raises(DownloadError, match=r"40d36571.*ViT-B-32\.pt"):
        ClipExtractor.load()


# Images


def test_the_protocols_prepare_as_they_should(tiny: dict[str, torch.Tensor]) -> None:
    images = noise(2, 50, 90, 3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    seen = {}
    for protocol, rule in (("clip", resize.pillow_bicubic_crop), ("cmmd", resize.crop_pillow_bicubic)):
        extractor = ClipExtractor(tiny, protocol, model="tiny", grey="repeat")
        seen[protocol] = extractor(images).features
        torch.testing.assert_close(seen[protocol], extractor.net(normalised(rule(pixels, 32))), atol=1e-4, rtol=1e-4)
        assert extractor.scores(seen[protocol]) is None and extractor.spatial_card is None
        assert extractor.card.resize == f"{rule.__name__} to 32"
        grey = images[..., :1]
        assert torch.equal(extractor(grey).features, extractor(grey.repeat(3, axis=3)).features)
    assert not torch.allclose(seen["clip"], seen["cmmd"], atol=1e-2)


# Names


def card(model: str, protocol: str, published: bool = True) -> Any:
    about = CLIP_MODELS[model]
    return clip_card(about, CLIP_PROTOCOLS[protocol], about.sha256 if published else "ab" * 32)


def test_only_one_distance_is_called_cmmd() -> None:
    """The published ViT-L/14@336, prepared as the metric's authors do. Everything else has another name."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 768, generator=draw), torch.randn(11, 768, generator=draw)
    names = {
        (model, protocol, published): cmmd(
            x[:, : CLIP_MODELS[model].dimension],
            y[:, : CLIP_MODELS[model].dimension],
            card=card(model, protocol, published),
        ).name
        for model in CLIP_MODELS
        for protocol in CLIP_PROTOCOLS
        for published in (True, False)
    }
    assert [key for key, name in names.items() if name == "CMMD"] == [("ViT-L/14@336px", "cmmd", True)]
    assert names["ViT-B/32", "clip", True] == "MMD-CLIP"
    assert names["ViT-L/14", "clip", True] == "MMD-clip-vit-l-14"
    assert names["ViT-L/14@336px", "cmmd", False] == "MMD-clip-vit-l-14-336px-other-weights"
    assert cmmd(x, y, sigma=5.0, card=card("ViT-L/14@336px", "cmmd")).name != "CMMD"
    assert cmmd(x, y).name == "MMD"
    assert kid(x, y, card=card("ViT-L/14", "clip")).name == "KD-clip-vit-l-14"


def test_only_one_distance_is_called_fd_clip() -> None:
    found = {(m, p, k): card(m, p, k).distance for m in CLIP_MODELS for p in CLIP_PROTOCOLS for k in (True, False)}
    assert [key for key, name in found.items() if name == "FD-CLIP"] == [("ViT-B/32", "clip", True)]
    assert len(set(found.values())) == 6 or all(name.startswith("FD-") for name in found.values())
