"""A network that begins with another's weights computes what that one did, as far as the change lets it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.training_runs import assert_same_run, run, tiny_task
from undiffuse import checkpoints
from undiffuse.adapters import imagenet_classes
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.noise_levels import Level
from undiffuse.training import seeded
from undiffuse.training.initialisation import Initialisation, initialise, matches

PROCESS = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
RANGE = replace(PROCESS, variance="learned_range")
GREY = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
TIMES = torch.tensor([3.0, 11.0])


def shaken(config: Any, seed: int = 0) -> Any:
    """A network whose zero-initialised layers are not zero."""
    with seeded(seed):
        net = config.build()
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return net.eval()


def unet(process: ProcessConfig = PROCESS, channels: int = 1, **changes: Any) -> UNetConfig:
    settings: dict[str, Any] = {
        "image_size": 8, "model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (2,), "in_channels": channels, "out_channels": process.out_channels(channels),
    }  # fmt: skip
    return UNetConfig(**{**settings, **changes})


def model(config: Any, process: ProcessConfig = PROCESS, labels: tuple[str, ...] | None = None) -> DiffusionModel:
    return DiffusionModel(net=shaken(config), process=process, labels=labels)


def fresh(config: Any) -> Any:
    return shaken(config, seed=7)


def out(net: nn.Module, x: Tensor = GREY, **conditions: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x, TIMES, **conditions)


def begun(
    config: Any, source: Any, process: ProcessConfig | None = None, labels: Any = None
) -> tuple[Any, Initialisation]:
    net = fresh(config)
    return net, initialise(net, source, process or source.process, labels, "the model")


def test_the_same_network_takes_everything_over() -> None:
    source = model(unet(num_classes=3), labels=("a", "b", "c"))
    net, report = begun(unet(num_classes=3, dropout=0.2), source, labels=["a", "b", "c"])
    y = torch.tensor([0, 2])
    assert torch.equal(out(net, y=y), out(source.net, y=y))
    # The class table was put together from its rows, all others taken as they are.
    assert report.loaded[0] == len(source.net.state_dict()) - 1
    assert report.adapted == report.fresh == report.dropped == report.notes == ()
    assert report.sha256 == source.digest
    net.out[2].weight.data += 1  # a copy, not the model's own tensors
    assert source.digest == report.sha256


def test_classes_keep_their_rows_by_name_and_others_are_average() -> None:
    source = model(unet(num_classes=3), labels=("left", "right", "top"))
    net, report = begun(unet(num_classes=4), source, labels=["Top", "bottom", "left", "middle"])
    for new, old in ((0, 2), (2, 0)):
        y = torch.full((2,), new), torch.full((2,), old)
        assert torch.equal(out(net, y=y[0]), out(source.net, y=y[1]))
    average = source.net.label_emb.weight.mean(dim=0)
    assert torch.allclose(net.label_emb.weight[1], average)
    assert torch.equal(net.label_emb.weight[1], net.label_emb.weight[3])
    assert report.adapted == ("class table: 2 of 4 classes by name (Top, left)",)
    assert report.fresh == ("class table: bottom, middle begin as the average class",)


def test_a_null_class_stands_for_unknown_classes() -> None:
    source = model(unet(num_classes=2, null_class=True), labels=("a", "b"))
    net, _ = begun(unet(num_classes=3, null_class=True), source, labels=["b", "c", "d"])
    rows, old = net.label_emb.weight, source.net.label_emb.weight
    assert [torch.equal(rows[k], old[j]) for k, j in enumerate((1, 2, 2, 2))] == [True] * 4
    plain, _ = begun(unet(num_classes=2), source, labels=["c", "a"])
    assert torch.equal(plain.label_emb.weight, old[[2, 0]])
    untold, _ = begun(unet(), source)
    assert torch.allclose(out(untold), out(source.net), atol=1e-5)  # without a label, the network takes the null class


def test_an_unconditional_model_begins_alike_for_every_class() -> None:
    source = model(unet())
    net, report = begun(unet(num_classes=3, null_class=True), source, labels=["a", "b", "c"])
    for y in (0, 2, 3):
        assert torch.equal(out(net, y=torch.full((2,), y)), out(source.net))
    assert report.fresh == ("class table: zeros, so that the network begins as the unconditional one it was",)


def test_a_conditional_model_without_labels_begins_as_its_average_class() -> None:
    source = model(unet(num_classes=3))
    net, report = begun(unet(), source)
    source.net.label_emb.weight.data[:] = source.net.label_emb.weight.mean(dim=0)
    assert torch.allclose(out(net), out(source.net, y=torch.tensor([0, 1])), atol=1e-5)
    assert report.dropped == ("class table: 3 classes",)
    assert report.adapted == ("time embedding: the average class was added to it",)


@pytest.mark.parametrize("upsampler", [False, True])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (4, 3), (1, 4), (4, 1)])
def test_channels(old: int, new: int, upsampler: bool) -> None:
    """Shown the same grey picture, the new network says what the old one does, averaged or copied over colours."""
    source = model(unet(RANGE, old, super_resolution=upsampler), RANGE)
    net, report = begun(unet(RANGE, new, super_resolution=upsampler), source)

    def seen(channels: int) -> dict[str, Tensor]:
        x = GREY.repeat(1, channels, 1, 1)
        x[:, 3:] = 0  # which is seen through fresh weights
        low = GREY[:, :, ::2, ::2].repeat(1, channels, 1, 1) / 2
        low[:, 3:] = 0
        return {"x": x, "low_res": low} if upsampler else {"x": x}

    before, after = out(source.net, **seen(old)).split(old, dim=1), out(net, **seen(new)).split(new, dim=1)
    for was, is_now in zip(before, after, strict=True):  # the prediction, the variance
        colours = was[:, :3].mean(dim=1, keepdim=True) if new == 1 else was[:, :3].expand(-1, 3, -1, -1)
        assert torch.allclose(is_now[:, :3], colours, atol=1e-5)
        assert not is_now[:, 3:].any()
    assert len(report.adapted) == 2
    if new > old:
        assert_nothing_stays_alike(net)


def assert_nothing_stays_alike(net: Any) -> None:
    """No two channels have the same weights in the input layer, else their gradients would be the same for ever."""
    weight = net.input_blocks[0][0].weight
    for first in range(weight.shape[1]):
        assert weight[:, first].abs().max() > 0.05  # a channel of zeros, predicted by zeros, would stay so as well
        for second in range(first):
            assert (weight[:, first] - weight[:, second]).abs().max() > 0.05


def test_colours_are_told_apart_where_they_were() -> None:
    """From RGB to RGBA and back nothing is lost."""
    source = model(unet(channels=3))
    there, _ = begun(unet(channels=4), source)
    back, _ = begun(unet(channels=3), DiffusionModel(net=there, process=PROCESS))
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), source.net.parameters(), strict=True))


def test_a_variance_that_is_learned_anew_begins_in_the_middle() -> None:
    source = model(unet())
    net, report = begun(unet(RANGE), source, RANGE)
    value, variance = out(net).split(1, dim=1)
    assert torch.equal(value, out(source.net))
    assert not variance.any()
    assert report.fresh == ("output layer: the variance begins at zero, the middle of its range",)
    chain = RANGE.chain()
    level = Level(*(v.expand(2) for v in (chain.level(torch.tensor([7])).alpha, chain.level(torch.tensor([7])).sigma)))
    step = chain.transition(torch.tensor([7, 7]))
    learned = ChainDenoiser(net, RANGE)(GREY, level).log_variance(step)
    between = (step.log_beta + step.log_posterior_variance) / 2
    assert torch.allclose(learned[0].double(), between[0].expand_as(learned[0]), atol=1e-5)


def test_a_variance_that_is_no_longer_learned_is_left_out() -> None:
    source = model(unet(RANGE), RANGE)
    net, report = begun(unet(), source, PROCESS)
    assert torch.equal(out(net), out(source.net)[:, :1])
    assert report.dropped == ("output layer: the variance, which is no longer learned",)
    other, report = begun(unet(RANGE), source, replace(PROCESS, variance="learned"))
    assert not out(other)[:, 1:].any()  # the same numbers would mean something else
    assert report.fresh == ("output layer: the variance begins at zero",)
    same, report = begun(unet(), model(unet()), replace(PROCESS, variance="fixed_large"))
    assert torch.equal(out(same), out(model(unet()).net))  # fixed either way: the network is not concerned


def test_another_process_and_size_are_noted() -> None:
    source = model(unet())
    process = replace(PROCESS, steps=40, target="v")
    net, report = begun(unet(image_size=(16, 24)), source, process)
    assert torch.equal(out(net), out(source.net))
    assert report.notes == (
        "it was trained at 8x8 (height x width) and is now trained at 16x24",
        "process.steps was 20 and is 40: to that it has to get used",
        "process.target was eps and is v: to that it has to get used",
    )


def classifier(pool: str, classes: int = 3, **changes: Any) -> ClassifierConfig:
    settings: dict[str, Any] = {
        "image_size": 8, "in_channels": 1, "out_channels": classes, "model_channels": 8, "channel_mult": (1, 2),
        "num_res_blocks": 1, "attention_resolutions": (), "num_head_channels": 8, "pool": pool,
    }  # fmt: skip
    return ClassifierConfig(**{**settings, **changes})


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifier_keeps_the_scores_of_known_classes(pool: str) -> None:
    source = ClassifierModel(net=shaken(classifier(pool)), process=PROCESS, labels=("left", "right", "top"))
    net, report = begun(classifier(pool, 5), source, labels=["new", "right", "left", "newer", "newest"])
    before, after = out(source.net), out(net)
    assert torch.allclose(after[:, 1:3], before[:, [1, 0]], atol=1e-6)
    assert torch.allclose(after[:, [0, 3, 4]], before.mean(dim=1, keepdim=True).expand(-1, 3), atol=1e-5)
    assert report.adapted == ("last layer: 2 of 5 classes by name (right, left)",)
    assert report.fresh == ("last layer: new, newer, newest begin as the average class",)
    assert report.loaded[0] == len(source.net.state_dict()) - 2


def test_an_attention_pool_for_other_sizes() -> None:
    source = ClassifierModel(net=shaken(classifier("attention")), process=PROCESS, labels=("a", "b", "c"))
    table = source.net.out[2].positional_embedding
    table.data[:, 1:] = torch.linspace(0, 1, 4).repeat_interleave(4)  # rises from the top to the bottom
    net, report = begun(classifier("attention", image_size=(16, 12)), source, labels=["a", "b", "c"])
    assert report.adapted == ("position table: interpolated from 4x4 to 8x6",)
    new = net.out[2].positional_embedding
    assert torch.equal(new[:, 0], table[:, 0])
    grid = new[:, 1:].reshape(-1, 8, 6)
    assert torch.allclose(grid, grid[:, :, :1].expand_as(grid))
    assert bool((grid.diff(dim=1) >= 0).all())
    assert (grid[0, 0, 0], grid[0, -1, 0]) == (0, 1)
    assert out(net, torch.zeros(2, 1, 16, 12)).shape == (2, 3)


def test_ddpm_networks_too() -> None:
    config = DDPMConfig(
        image_size=8, in_channels=3, out_channels=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1
    )
    source = model(config)
    net, report = begun(replace(config, in_channels=1, out_channels=1), source)
    expected = out(source.net, GREY.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    assert torch.allclose(out(net), expected, atol=1e-5)
    assert len(report.adapted) == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (unet(model_channels=16), "model_channels = 16 instead of 8"),
        (unet(num_heads=2, attention_resolutions=(1,)), "attention_resolutions = (1,) instead of (2,), num_heads = 2"),
        (unet(channels=2), "no way from a network for pictures of 1 channels to one for 2"),
        (classifier("adaptive"), "a network of UNetConfig gives no weights to one of ClassifierConfig"),
    ],
)
def test_what_cannot_be(config: Any, told: str) -> None:
    with pytest.raises(ValueError) as error:
        begun(config, model(unet()))
    assert told in str(error.value)


def test_which_classes_are_the_same() -> None:
    names = DiffusionModel(net=shaken(unet(num_classes=3)), process=PROCESS, labels=("Cat", "dog", "7"))
    assert matches(["DOG", "cat", "cow", "7"], 4, names) == [1, 0, None, 2]
    nameless = replace(names, labels=None)
    assert matches(["a", "b", "c"], 3, nameless) == [0, 1, 2]
    assert matches(["a", "b"], 2, nameless) == [None, None]
    _, report = begun(unet(num_classes=3), nameless, labels=["a", "b", "c"])
    assert report.notes == ("its classes have no names: it was taken for granted that they are yours, in your order",)
    everything = replace(names, labels=imagenet_classes.names(), net=shaken(unet(num_classes=1000)))
    mine = ["golden_retriever", "n01440764", "jack-o'-lantern", "7", "retriever", "crane", "unheard of"]
    assert matches(mine, 7, everything) == [207, 0, 607, None, None, None, None]
    assert matches(imagenet_classes.names(), 1000, everything) == list(range(1000))


class Interrupt(Exception):
    """Stands for a crash in the middle of a run."""


def test_a_run_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    """Interrupted and resumed it equals the uninterrupted run; the model's weights are not taken again."""
    source = DiffusionModel(
        net=shaken(tiny_task().net.config), process=tiny_task().process, labels=("top", "x", "left")
    )

    def task() -> tuple[Any, dict[str, Any]]:
        made = tiny_task(seed=3)
        return made, {"from": "m", **initialise(made.net, source, made.process, made.labels).to_dict()}

    def go(folder: str, made: Any, init: Any) -> None:
        run(tmp_path / folder, made, init=init)

    whole, init = task()
    beginning = {name: tensor.clone() for name, tensor in whole.net.state_dict().items()}
    go("whole", whole, init)
    part, init = task()
    terms, calls = part.losses, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise Interrupt
        return terms(*arguments)

    part.losses = interrupted
    with pytest.raises(Interrupt):
        go("parts", part, init)
    go("parts", tiny_task(seed=9), init)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ValueError, match=r"init: 'm' -> 'other'"):
        go("parts", tiny_task(), {**init, "from": "other"})
    with pytest.raises(ValueError, match=r"init: 'm' -> None"):
        go("parts", tiny_task(), None)
    # The averages begin where the weights do: with a decay of nearly one they have hardly moved.
    other, init = task()
    run(tmp_path / "ema", other, init=init, ema_decays=(0.999999,), ema_warmup=False, images=4)
    average, manifest = checkpoints.load_weights(checkpoints.latest(tmp_path / "ema"), "0.999999")  # type: ignore[arg-type]
    assert max(float((average[name] - beginning[name]).abs().max()) for name in average) < 1e-6
    assert manifest["init"] == {**init, "loaded": list(init["loaded"])}
