"""Networks with conditions besides the class: what is not given, what is added, what stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.guidance import ClassifierFree
from undiffuse.nets import UNetConfig, conditions_of, config_from_dict, config_to_dict, describe
from undiffuse.nets.conditioning import NumberEmbedding, TagEmbedding, with_picture
from undiffuse.nets.registry import check_size
from undiffuse.nets.runner import prepare_for_inference
from undiffuse.noise_levels import Level

SMALL = {
    "image_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8, "channel_mult": (1, 1),
    "num_res_blocks": 1, "attention_resolutions": (), "num_heads": 1,
}  # fmt: skip


def _net(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    net = UNetConfig(**{**SMALL, **fields}).build()
    with torch.no_grad():  # a fresh network returns zeros
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net.eval()


def _inputs(net: torch.nn.Module, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {
        "tags": torch.randn(batch, 3, generator=generator).gt(0).float(),
        "numbers": torch.randn(batch, 2, generator=generator),
        "cond_image": torch.randn(batch, 2, 8, 8, generator=generator),
    }
    return {name: value for name, value in given.items() if name in conditions_of(net)}


ALL = {"num_tags": 3, "num_numbers": 2, "cond_channels": 2}
X, T = torch.linspace(-1, 1, 192).reshape(3, 1, 8, 8), torch.tensor([1.0, 400.0, 900.0])


def test_weights_without_conditions_are_those_of_before() -> None:
    torch.manual_seed(0)
    plain = UNetConfig(**SMALL).build().state_dict()
    assert not any("tag_emb" in name or "number_emb" in name for name in plain)
    torch.manual_seed(0)
    more = UNetConfig(**SMALL, num_numbers=1, num_tags=2).build().state_dict()
    assert all(torch.equal(plain[name], more[name]) for name in plain)


def test_files_of_networks_without_conditions_say_nothing_of_them() -> None:
    assert not {"num_tags", "num_numbers", "cond_channels"} & set(config_to_dict(_net()))
    about = config_to_dict(_net(**ALL))
    assert config_from_dict(about) == UNetConfig(**SMALL, **ALL)
    assert describe(about).width_of("numbers") == 2
    assert describe(describe(about).to_dict()) == describe(about)


@pytest.mark.parametrize("name", ["tags", "numbers", "cond_image"])
def test_each_condition_matters_and_nan_means_that_it_is_not_given(name: str) -> None:
    net = _net(**ALL)
    given = _inputs(net)
    with torch.no_grad():
        out = net(X, T, **given)
        changed = net(X, T, **{**given, name: 1 - given[name]})
        nothing = net(X, T, **{**given, name: torch.full_like(given[name], math.nan)})
        left_out = net(X, T, **{key: value for key, value in given.items() if key != name})
    assert bool(torch.isfinite(nothing).all())
    assert float((out - changed).abs().max()) > 1e-4
    assert float((out - nothing).abs().max()) > 1e-4
    assert torch.equal(nothing, left_out)


def test_one_number_of_several_can_be_left_out() -> None:
    net = _net(num_numbers=2)
    both = torch.tensor([[0.5, 1.0]]).expand(3, 2)
    with torch.no_grad():
        second = net(X, T, numbers=torch.tensor([[math.nan, 1.0]]).expand(3, 2))
        other = net(X, T, numbers=torch.tensor([[math.nan, -1.0]]).expand(3, 2))
        assert float((second - net(X, T, numbers=both)).abs().max()) > 1e-4
        assert float((second - other).abs().max()) > 1e-4


def test_images_of_a_batch_do_not_see_each_others_conditions() -> None:
    net = _net(**ALL)
    given = _inputs(net)
    given["numbers"][1] = math.nan
    given["tags"][2] = math.nan
    given["cond_image"][0] = math.nan
    with torch.no_grad():
        together = net(X, T, **given)
        for k in range(3):
            alone = net(X[k : k + 1], T[k : k + 1], **{name: value[k : k + 1] for name, value in given.items()})
            assert torch.allclose(together[k], alone[0], atol=1e-5)


def test_a_grey_picture_is_not_the_same_as_none() -> None:
    grey = with_picture(X, torch.zeros(3, 2, 8, 8), 2)
    none = with_picture(X, None, 2)
    assert grey.shape == none.shape == (3, 4, 8, 8)
    assert torch.equal(grey[:, :3], none[:, :3])
    assert bool((grey[:, 3] == 1).all())
    assert bool((none[:, 3] == 0).all())


def test_gradients_are_finite_where_conditions_are_dropped() -> None:
    net = _net(**ALL).train()
    given = {name: torch.full_like(value, math.nan) for name, value in _inputs(net).items()}
    given["numbers"][0, 0] = 0.3
    net(X, T, **given).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    assert float(net.number_emb.null.grad.abs().sum()) > 0


def test_embeddings_add_up() -> None:
    torch.manual_seed(0)
    tags = TagEmbedding(3, 4)
    one, two, both = (tags(torch.tensor([row])) for row in ([1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 1.0]))
    assert torch.allclose(one + two, both)
    numbers = NumberEmbedding(1, 4)
    near, far = numbers(torch.tensor([[0.1], [0.101]])), numbers(torch.tensor([[0.1], [2.0]]))
    assert (near[0] - near[1]).abs().max().item() < (far[0] - far[1]).abs().max().item()


def test_wrong_shapes_and_unknown_conditions_are_refused() -> None:
    net = _net(num_numbers=2, cond_channels=1)
    with pytest.raises(ValueError, match=r"expected numbers \[3, 2\], got \[3, 1\]"):
        net(X, T, numbers=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"expected condition pictures \[3, 1, 8, 8\], got \[3, 1, 4, 4\]"):
        net(X, T, cond_image=torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="tags was given to a network that does not take it"):
        net(X, T, tags=torch.zeros(3, 2))


def test_prepared_networks_give_the_same() -> None:
    net = _net(**ALL)
    given = _inputs(net)
    runner = prepare_for_inference(net, "fp32", "cpu")
    assert runner.conditions == {"tags", "numbers", "cond_image"}
    with torch.no_grad():
        assert torch.allclose(runner(X, T, **given), net(X, T, **given), atol=1e-5)


def test_classifier_free_guidance_contrasts_with_nothing_given() -> None:
    net = _net(**ALL)
    given = _inputs(net)
    process = ProcessConfig(variance="fixed_small")
    denoiser = ChainDenoiser(net, process, "none")
    null = dict.fromkeys(("tags", "numbers", "cond_image"), math.nan)
    level = denoiser.chain.level(torch.tensor([500]))
    with torch.no_grad():
        given_eps, none_eps = denoiser(X, level, given).eps, denoiser(X, level, {}).eps
        for together in (True, False):
            found = ClassifierFree(denoiser, 3.0, null, together=together)(X, level, given).eps
            assert torch.allclose(found, none_eps + 3 * (given_eps - none_eps), atol=1e-4)
        partly = {"numbers": given["numbers"]}
        found = ClassifierFree(denoiser, 2.0, null)(X, level, partly).eps
        expected = none_eps + 2 * (denoiser(X, level, partly).eps - none_eps)
        assert torch.allclose(found, expected, atol=1e-4)
    assert isinstance(level, Level)


def test_more_numbers_than_there_are_weights_for_are_refused_before_they_are_built() -> None:
    config = UNetConfig(
        image_size=8, model_channels=8, channel_mult=(1, 2), attention_resolutions=(), num_numbers=10**9
    )
    with pytest.raises(ValueError, match="num_numbers is 1e[+]09, but the file holds only 50 tensors"):
        check_size(config, 50)
    check_size(replace(config, num_numbers=3), 50)
