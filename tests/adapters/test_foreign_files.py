"""Files of other code's weights: opened without executing anything, converted once, and computing the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support.foreign_files import CLASSIFIER, DIFFUSION, Malicious, layout_of, outputs, weights_of, write
from support.golden_files import NETWORKS, Golden, draw_weights, for_each, kind_of
from undiffuse import checkpoints, models
from undiffuse.adapters import foreign, importing, published
from undiffuse.adapters.diffusers_config import DDPM_SETTINGS
from undiffuse.adapters.importing import identify
from undiffuse.checkpoints import CheckpointError
from undiffuse.models import ClassifierModel, load_classifier, load_diffusion, load_model, resolve, save_model
from undiffuse.nets import DDPMConfig, UNetConfig

LIKE = "guided-diffusion --image_size 32 --num_head_channels 16 --use_new_attention_order True --noise_schedule cosine"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small networks among the published ones."""
    for entry in (DIFFUSION, CLASSIFIER):
        monkeypatch.setitem(published.ENTRIES, entry.name, entry)  # type: ignore[arg-type]


def expected(seed: int = 5) -> torch.Tensor:
    net = DIFFUSION.net.build()
    net.load_state_dict(weights_of(DIFFUSION, seed))
    return outputs(net.eval(), 1000)


def says(model: Any, seed: int = 5) -> bool:
    """Whether a model says what the network with these weights says."""
    right = expected(seed)
    return bool((outputs(model.net, 1000) - right).abs().max() < 1e-4 * right.abs().max())


@for_each("unet", "superres", "classifier")
def test_golden_networks_from_files(path: Path, tmp_path: Path) -> None:
    """The original's outputs, from a file that says nothing of itself and the flags it was made with."""
    golden = Golden(path)
    arguments, kind = golden.meta["kwargs"], kind_of(path.name)
    weights = draw_weights(golden.meta["state_dict"], golden.meta["seed"])
    file = write(tmp_path / "w.pt", weights, legacy=arguments.get("num_res_blocks") == 2)
    size = golden.take("x").shape[-1]
    said = {"large_size" if kind == "superres" else "image_size": size, "noise_schedule": "linear"}
    for name in ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order"):
        if name in arguments:
            said[name] = arguments[name]
    like = "guided-diffusion " + " ".join(f"--{name} {value}" for name, value in said.items())
    model = load_model(f"{file}@{like}")
    assert isinstance(model, ClassifierModel) == (kind == "classifier")
    inputs = [golden.take("x"), golden.take("t")]
    if kind != "classifier":
        inputs += [golden.take(name) if name in golden else None for name in ("y", "low_res")]  # type: ignore[misc]
    with torch.no_grad():
        golden.compare("output", model.net(*inputs), NETWORKS)
    assert not golden.failures


def test_a_file_is_converted_once_and_says_where_it_is_from(tmp_path: Path, cache: Path, tiny: None) -> None:
    file = write(tmp_path / "tiny_diffusion.pt", weights_of(DIFFUSION))
    model = load_diffusion(file)
    assert says(model)
    assert (model.net.config, model.process, model.published) == (DIFFUSION.net, DIFFUSION.process, DIFFUSION)
    assert model.class_index("golden retriever") == 207
    source = model.manifest["source"]
    assert (source["file"], source["published"], source["known_by"]) == ("tiny_diffusion.pt", "tiny_diffusion", "name")
    assert (source["licence"], source["url"]) == (DIFFUSION.licence, DIFFUSION.url)
    assert source["sha256"] == importing.content_hash(file)
    assert str(tmp_path) not in json.dumps(model.manifest)
    converted = resolve(file)
    assert converted.parent == cache / "converted"
    before = converted.stat()
    assert load_diffusion(file).digest == model.digest
    assert (converted.stat().st_ino, converted.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert model.digest == checkpoints.weights_hash(weights_of(DIFFUSION))
    save_model(tmp_path / "slim.safetensors", model)
    again = load_diffusion(tmp_path / "slim.safetensors")
    assert (again.published, again.digest) == (DIFFUSION, model.digest)


def test_another_understanding_is_another_file(tmp_path: Path, cache: Path) -> None:
    """Also of a changed file at the same place."""
    file = write(tmp_path / "a.pt", weights_of(DIFFUSION))
    first = load_diffusion(f"{file}@{LIKE}")
    other = load_diffusion(f"{file}@{LIKE} use_new_attention_order=False")
    assert says(first)
    assert not says(other)
    assert first.digest == other.digest
    write(file, weights_of(DIFFUSION, seed=6))
    changed = load_diffusion(f"{file}@{LIKE}")
    assert says(changed, 6)
    assert not says(changed, 5)
    assert len(list((cache / "converted").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(b"")])
def test_a_broken_conversion_is_made_again(tmp_path: Path, damage: Any) -> None:
    file = write(tmp_path / "a.pt", weights_of(DIFFUSION))
    damage(resolve(f"{file}@{LIKE}"))
    assert says(load_diffusion(f"{file}@{LIKE}"))


def wrapped(kind: str) -> Any:
    weights = weights_of(DIFFUSION)
    if kind == "parallel":
        return {f"module.{name}": value for name, value in weights.items()}
    if kind == "lightning":
        return {"state_dict": {f"model.net.{k}": v for k, v in weights.items()}, "epoch": 3, "hyper": {"lr": 1e-4}}
    if kind == "parameters":
        return {name: torch.nn.Parameter(value) for name, value in weights.items()}
    return weights


@pytest.mark.parametrize("kind", ["plain", "parallel", "lightning", "parameters", "legacy", "safetensors"])
def test_ways_to_save_the_same_weights(tmp_path: Path, kind: str, tiny: None) -> None:
    file = tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(wrapped(kind), file)
    else:
        write(file, wrapped(kind), legacy=kind == "legacy")
    assert says(load_diffusion(file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_single(tmp_path: Path, dtype: torch.dtype, tiny: None) -> None:
    file = write(tmp_path / "w.pt", {name: value.to(dtype) for name, value in weights_of(DIFFUSION).items()})
    model = load_diffusion(file)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    assert {value.dtype for value in checkpoints.load_weights(resolve(file))[0].values()} == {torch.float32}
    error = (outputs(model.net, 1000) - expected()).abs().max() / expected().abs().max()
    assert error < {torch.float16: 3e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-4)


def test_of_several_networks_in_a_file_one_is_chosen_by_name(tmp_path: Path, tiny: None) -> None:
    both = {"model": weights_of(DIFFUSION), "ema": weights_of(DIFFUSION, 6), "step": 3}
    file = write(tmp_path / "w.pt", both)
    with pytest.raises(CheckpointError, match="contains several networks, model, ema: choose one by weights=NAME"):
        load_model(file)
    with pytest.raises(CheckpointError, match="has no weights 'average'; it has: model, ema"):
        load_model(file, weights="average")
    with pytest.raises(CheckpointError, match="has no weights '0.999'; it has: net"):
        load_model(write(tmp_path / "one.pt", weights_of(DIFFUSION)), weights="0.999")
    assert load_model(tmp_path / "one.pt", weights="net").weights == "net"
    for name, seed in (("model", 5), ("ema", 6)):
        model = load_diffusion(file, weights=name)
        assert model.weights == name
        assert says(model, seed)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", ["alone", "among weights", "as a key's value"])
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path, legacy: bool, inside: str, tiny: None) -> None:
    mark = tmp_path / "executed"
    evil: Any = Malicious(mark)
    if inside == "among weights":
        evil = {**weights_of(DIFFUSION), "extra": evil}
    elif inside == "as a key's value":
        evil = {"state_dict": weights_of(DIFFUSION), "hyper_parameters": {"optimiser": evil}}
    for name in ("tiny_diffusion.pt", "w.ckpt", "w.safetensors", "diffusion_pytorch_model.bin"):
        file = write(tmp_path / name, evil, legacy)
        with pytest.raises(CheckpointError) as caught:
            load_model(file)
        if name != "w.safetensors":
            assert re.search(rf"{re.escape(name)} is refused: it contains \w+\.system, and", str(caught.value))
        assert "weights_only" not in str(caught.value)
    assert not mark.exists()
    torch.load(tmp_path / "w.ckpt", weights_only=False)  # the trap itself works
    assert mark.exists()


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Identity()), path)


def cut(legacy: bool) -> Any:
    def spoil(path: Path) -> None:
        content = write(path, weights_of(DIFFUSION), legacy).read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])

    return spoil


def expanded() -> dict[str, torch.Tensor]:
    """A file of a few bytes that claims to hold a tensor of terabytes."""
    weights = weights_of(DIFFUSION)
    weights["label_emb.weight"] = torch.zeros(1).expand(1000, 10**9)
    return weights


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut(False), "is damaged or incomplete"),
        (cut(True), "is damaged or incomplete"),
        (lambda p: p.write_bytes(b""), "is damaged or incomplete .it is empty"),
        (lambda p: p.write_text("<html>404</html>"), "is neither weights of PyTorch nor a checkpoint"),
        (script, "is a TorchScript program"),
        (lambda p: write(p, 3), "it is a int"),
        (lambda p: write(p, {}), "it contains nothing"),
        (lambda p: write(p, [torch.zeros(2)]), "it is a list"),
        (lambda p: write(p, {"a": torch.zeros(2)}), "net has 1 tensor: a"),
        (lambda p: write(p, torch.optim.Adam([torch.zeros(2)]).state_dict()), "the state of an optimizer"),
        (lambda p: write(p, {**weights_of(DIFFUSION), "out.2.bias": torch.zeros(6, dtype=torch.int64)}), "int64"),
        (lambda p: write(p, expanded()), "not an ordinary tensor"),
        (lambda p: write(p, {**weights_of(DIFFUSION), "out.2.bias": torch.zeros(7)}), "1 of .* tensors differ"),
        (lambda p: write(p, weights_of(DIFFUSION)), "do not show image_size"),
    ],
)
def test_files_that_cannot_be_used_are_one_clear_error(tmp_path: Path, spoil: Any, told: str, cache: Path) -> None:
    file = tmp_path / "w.pt"
    spoil(file)
    for attempt in (load_model, load_diffusion, load_classifier, identify):
        with pytest.raises(CheckpointError, match=told) as caught:
            attempt(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(cache.glob("converted/*.safetensors"))


def test_kinds_are_not_confused(tmp_path: Path, tiny: None) -> None:
    diffusion = write(tmp_path / "a.pt", weights_of(DIFFUSION))
    classifier = write(tmp_path / "b.pt", weights_of(CLASSIFIER))
    assert load_classifier(classifier).process.schedule == "cosine"
    with pytest.raises(ValueError, match="is a classifier; a diffusion model is needed"):
        load_diffusion(classifier)
    with pytest.raises(ValueError, match="is a diffusion model; a noisy-image classifier is needed"):
        load_classifier(diffusion)
    with pytest.raises(ValueError, match="it holds a classifier, but .* is a diffusion model"):
        load_model(f"{classifier}@tiny_diffusion")


def test_our_own_files_say_themselves_what_they_are(tmp_path: Path, tiny: None) -> None:
    model = load_diffusion(write(tmp_path / "w.pt", weights_of(DIFFUSION)))
    save_model(tmp_path / "ours.safetensors", model)
    with pytest.raises(ValueError, match="says itself what it is: leave 'tiny_diffusion' out"):
        load_model(f"{tmp_path}/ours.safetensors@tiny_diffusion")
    odd = tmp_path / "odd@tiny_classifier"
    os.replace(tmp_path / "w.pt", odd)  # a file may be called like a pair
    assert load_diffusion(odd).published == DIFFUSION
    with pytest.raises(ValueError, match="no published one; did you mean lsun_bedroom"):
        load_model("lsun_bedrom")
    with pytest.raises(ValueError, match="there is no file or folder"):
        load_model(f"{tmp_path}/missing.pt@tiny_diffusion")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    file = write(tmp_path / "w.pt", weights_of(DIFFUSION))
    (tmp_path / "nofolder").write_text("a file where the cache should be")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "nofolder"))
    with pytest.raises(OSError, match="nofolder"):
        load_model(file)
    assert identify(file).meaning.config == DIFFUSION.net  # which needs no cache


def load_and_tell(reference: str, tell: Any) -> None:
    try:
        tell((load_model(reference).digest, str(resolve(reference))))
    except BaseException as error:
        tell((repr(error), ""))
        raise


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that start at once")
def test_processes_that_convert_the_same_file(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "w.pt", weights_of(DIFFUSION))
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    running = [fork.Process(target=load_and_tell, args=(f"{file}@{LIKE}", told.put)) for _ in range(3)]
    for process in running:
        process.start()
    answers = {told.get() for _ in running}
    for process in running:
        process.join(60)
    assert answers == {(checkpoints.weights_hash(weights_of(DIFFUSION)), str(resolve(f"{file}@{LIKE}")))}
    assert len(list((cache / "converted").glob("*.safetensors"))) == 1
    assert not list((cache / "converted").glob(".*.tmp"))


SMALL = DDPMConfig(image_size=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,))


def ddpm_weights() -> Mapping[str, torch.Tensor]:
    return draw_weights(layout_of(SMALL), 3)


def test_ddpms_own_weights(tmp_path: Path) -> None:
    """Also inside the list that DDIM's training writes, whose last part, the average, is taken."""
    plain = load_diffusion(write(tmp_path / "model-1.ckpt", ddpm_weights()))
    assert (plain.net.config, plain.process.variance) == (SMALL, "fixed_large")
    listed = [{f"module.{k}": v + 1 for k, v in ddpm_weights().items()}, {"state": {}}, 3, 7, ddpm_weights()]
    averaged = load_diffusion(write(tmp_path / "ckpt.pth", listed))
    assert averaged.digest == plain.digest
    other = load_diffusion(f"{tmp_path}/model-1.ckpt@ddpm --image_size 64 --sigma_small True")
    assert (other.net.config.size, other.process.variance) == ((64, 64), "fixed_small")
    for like, told in (("64x64_diffusion", "it is DDPM's U-Net"), ("ddpm_cifar10", "its levels have 32/64 channels"),
                       ("ddpm --num_heads 4", "image_size and sigma_small, not num_heads")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            load_model(f"{tmp_path}/model-1.ckpt@{like}")


def test_ddpms_published_files_are_known_by_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {
        "image_size": 32, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "dropout": 0.1,
        "attention_resolutions": "16", "num_heads": 1, "use_scale_shift_norm": False, "sigma_small": True,
    }  # fmt: skip
    entry = replace(published.get("ddpm_ema_cifar10"), name="ddpm_tiny", file="tiny_model/model-1.ckpt", flags=flags)
    monkeypatch.setitem(published.ENTRIES, "ddpm_tiny", entry)  # type: ignore[arg-type]
    named = load_diffusion(write(tmp_path / "tiny_model" / "model-1.ckpt", ddpm_weights()))
    assert (named.published, named.process, named.net.config) == (entry, entry.process, entry.net)
    assert named.process.variance == "fixed_small"
    strange = load_diffusion(write(tmp_path / "model-1.ckpt", ddpm_weights()))
    assert strange.published is None
    said = load_diffusion(f"{tmp_path}/model-1.ckpt@ddpm_tiny")
    assert (said.published, said.process) == (entry, entry.process)
    larger = replace(entry, flags={**flags, "channel_mult": "1,2,2"})
    monkeypatch.setitem(published.ENTRIES, "ddpm_tiny", larger)  # type: ignore[arg-type]
    assert load_diffusion(tmp_path / "tiny_model" / "model-1.ckpt").published is None  # whose shapes are others


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    unet = {**DDPM_SETTINGS, "_diffusers_version": "0.30.0", "_class_name": "UNet2DModel", "sample_size": 32}
    folder = tmp_path / "pipeline" / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(unet))
    save_file(dict(ddpm_weights()), folder / "diffusion_pytorch_model.safetensors")
    model = load_diffusion(tmp_path / "pipeline")
    assert model.net.config == SMALL
    with pytest.raises(ValueError, match="neither checkpoints of a run nor a diffusers model"):
        load_model(tmp_path)


def test_identification_touches_neither_cache_nor_network(tmp_path: Path, tiny: None) -> None:
    found = identify(write(tmp_path / "w.pt", weights_of(DIFFUSION)))
    assert found.meaning.entry == DIFFUSION
    assert "tiny_diffusion, by its shapes" in found.source["facts"]
    assert not (tmp_path / "cache" / "models" / "converted").exists()


def test_names_of_networks() -> None:
    assert foreign.names_a_network(weights_of(DIFFUSION))
    assert foreign.names_a_network(ddpm_weights())
    assert not foreign.names_a_network({"a": 1})
    assert models.split_reference("no-such-file@tiny_diffusion") == ("no-such-file@tiny_diffusion", None)
    assert isinstance(DIFFUSION.net, UNetConfig)
