"""The vision transformers against other implementations with equal drawn weights (development only, see peers.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.drawn import drawn
from support.peers import peer
from undiffuse.metrics.extractors.clip_tower import ImageTower, tower_weights
from undiffuse.metrics.extractors.dinov2 import DinoV2

TOLERANCE = 1e-4  # sums of float32 in another order, through norms, to numbers of about 10; 2.4e-5 is seen


def pixels(size: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 3, size, size)).astype("float32"))


@pytest.mark.parametrize("shape", [(32, 8, 128, 2, 2, 24), (56, 14, 192, 3, 3, 40)])
@pytest.mark.parametrize("package", ["torch_fidelity", "open_clip", "transformers"])
@torch.inference_mode()
def test_clip_towers_agree(package: str, shape: tuple[int, int, int, int, int, int]) -> None:
    """torch-fidelity's is OpenAI's own code; open_clip and transformers are other implementations."""
    size, patch, width, depth, heads, dimension = shape
    own = ImageTower(*shape).eval()
    x = pixels(size)
    if package == "transformers":
        models = peer("transformers")
        config = models.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=dimension,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=size,
            patch_size=patch,
            hidden_act="quick_gelu",
        )
        other = models.CLIPVisionModelWithProjection(config).eval()
        state = drawn({n: t for n, t in other.state_dict().items() if t.is_floating_point()})
        assert not other.load_state_dict(state, strict=False).unexpected_keys
        own.load_state_dict(tower_weights(state))
        expected = other(pixel_values=x).image_embeds
    else:
        if package == "torch_fidelity":
            other = peer("torch_fidelity.feature_extractor_clip").VisionTransformer(*shape)
        else:
            net = peer("open_clip.transformer")
            other = net.VisionTransformer(
                size, patch, width, depth, heads, 4.0, output_dim=dimension, act_layer=net.QuickGELU
            )
        state = drawn(own.state_dict())
        own.load_state_dict(state)
        other.eval().load_state_dict(state)
        expected = other(x)
    assert float(expected.abs().max()) > 5
    assert float((own(x) - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("package", ["timm", "transformers"])
@torch.inference_mode()
def test_dinov2_agrees_at_its_trained_size(package: str) -> None:
    """At 518 no position is interpolated; for other sizes both of these packages take another rule than the original,
    whose numbers are frozen in test_metrics_extractors.py."""
    own = DinoV2(32, 2, 4).eval()
    x = pixels(518)
    if package == "timm":
        layers = peer("timm.models.vision_transformer")
        other = layers.VisionTransformer(
            img_size=518, patch_size=14, embed_dim=32, depth=2, num_heads=4, init_values=1.0, num_classes=0
        ).eval()
        state = drawn(other.state_dict())
        other.load_state_dict(state)
        own.load_state_dict({**state, "mask_token": torch.zeros(1, 32)})
        expected = other(x)
    else:
        models = peer("transformers")
        config = models.Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=518, patch_size=14
        )
        other = models.Dinov2Model(config).eval()
        state = drawn(other.state_dict())
        other.load_state_dict(state)
        own.load_state_dict(from_transformers(state))
        expected = other(pixel_values=x).pooler_output
    assert float((own(x) - expected).abs().max()) < TOLERANCE


def from_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names of a DINOv2, as the published file has them."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        for old, new in (
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.", ""),
            ("encoder.layer.", "blocks."),
            ("attention.q_proj", "attn.qkv"),
            ("attention.o_proj", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("layernorm", "norm"),
        ):
            name = name.replace(old, new)
        out[name] = tensor
    return out
