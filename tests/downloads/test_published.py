"""Published models by name: downloaded from a server that misbehaves, examined, converted once, and used offline."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.file_server import Server, serving
from support.foreign_files import CLASSIFIER, DIFFUSION, Malicious, weights_of
from undiffuse import checkpoints
from undiffuse.adapters import importing, published
from undiffuse.downloads import DownloadError, recorded
from undiffuse.models import load_classifier, load_model, paired_classifier, resolve

DIGEST = checkpoints.weights_hash(weights_of(DIFFUSION))


def content_of(what: Any, legacy: bool = False) -> bytes:
    """What `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(what, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server from which the tiny model is downloaded."""
    with serving() as server:
        server.content = content_of(weights_of(DIFFUSION))
        for entry in (DIFFUSION, CLASSIFIER):
            monkeypatch.setitem(published.ENTRIES, entry.name, replace(entry, url=server.url))  # type: ignore[arg-type]
        yield server


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDIFFUSE_OFFLINE", raising=False)
    monkeypatch.setattr("undiffuse.downloads.time.sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def place() -> Path:
    return importing.place_of(published.get("tiny_diffusion"))


def test_a_name_is_downloaded_converted_and_remembered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not importing.is_here("tiny_diffusion")
    model = load_model("tiny_diffusion")
    assert model.digest == DIGEST
    assert model.published is not None
    source = model.manifest["source"]
    assert (source["published"], source["known_by"], source["url"]) == ("tiny_diffusion", "download", server.url)
    assert "tiny_diffusion, as downloaded" in source["facts"]
    assert recorded(place()) == source["sha256"]
    assert importing.is_here("tiny_diffusion")
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    assert load_model("tiny_diffusion").digest == DIGEST
    place().unlink()  # what was converted is enough, as long as its record is there
    assert load_model("tiny_diffusion").digest == DIGEST
    assert importing.is_here("tiny_diffusion")
    assert len(server.ranges) == 1


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("fault", ["break", "claims more", "claims less", "503"])
def test_a_server_that_fails_once(server: Server, fault: str, legacy: bool) -> None:
    server.content = content_of(weights_of(DIFFUSION), legacy)
    server.faults = [fault]
    assert load_model("tiny_diffusion").digest == DIGEST
    assert place().read_bytes() == server.content


def flipped(content: bytes) -> bytes:
    """One bit of one weight is wrong, which only a checksum can tell."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def fewer_classes() -> dict[str, torch.Tensor]:
    """Somebody's model that began as the published one."""
    weights = weights_of(DIFFUSION)
    return {**weights, "label_emb.weight": weights["label_emb.weight"][:10].clone()}


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (lambda: flipped(content_of(weights_of(DIFFUSION))), "the checksum of .* in it is wrong"),
        (lambda: content_of(weights_of(DIFFUSION))[:-5000], "is damaged or incomplete"),
        (lambda: content_of(weights_of(DIFFUSION), True)[:-5000], "is damaged or incomplete"),
        (lambda: content_of(weights_of(CLASSIFIER)), "it holds a classifier, but .* is a diffusion model"),
        (lambda: content_of(fewer_classes()), "it is not the network of tiny_diffusion"),
        (lambda: content_of({"a": torch.zeros(2)}), "no weights of a known diffusion network"),
        (lambda: b"<html>please log in</html>", "is neither weights of PyTorch nor"),
    ],
)  # fmt: skip
def test_wrong_bytes_every_time_leave_nothing(server: Server, served: Any, told: str, tmp_path: Path) -> None:
    server.content = served()
    with pytest.raises(DownloadError, match=told) as caught:
        load_model("tiny_diffusion")
    assert f"save it as {place()}" in str(caught.value)
    assert len(server.ranges) == 3
    assert not place().exists()
    assert recorded(place()) is None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_malicious_file_at_the_address_executes_nothing(server: Server, tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "executed"
    server.content = content_of({**weights_of(DIFFUSION), "extra": Malicious(mark)}, legacy)
    with pytest.raises(DownloadError, match=r"is refused: it contains \w+\.system, and"):
        load_model("tiny_diffusion")
    assert not mark.exists()


def test_a_file_that_changes_after_its_first_download_is_refused(server: Server, tmp_path: Path) -> None:
    load_model("tiny_diffusion")
    resolve("tiny_diffusion").unlink()
    place().unlink()
    server.content = content_of(weights_of(DIFFUSION, seed=6))
    with pytest.raises(DownloadError, match="records that of the first download"):
        load_model("tiny_diffusion")


def test_a_pinned_hash_is_all_that_counts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published.get("tiny_diffusion")
    monkeypatch.setitem(published.ENTRIES, entry.name, replace(entry, sha256="0" * 64))  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=f"wrong checksum .*expected {'0' * 64}"):
        load_model("tiny_diffusion")
    monkeypatch.setitem(published.ENTRIES, entry.name, replace(entry, md5="0" * 32))  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=f"MD5 .*expected {'0' * 32}"):
        load_model("tiny_diffusion")


def test_offline_names_the_place_for_a_file_brought_by_hand(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    with pytest.raises(DownloadError, match="downloads are disabled") as caught:
        load_model("tiny_diffusion")
    assert str(place()) in str(caught.value)
    place().parent.mkdir(parents=True, exist_ok=True)
    place().write_bytes(server.content[:-300])
    with pytest.raises(DownloadError, match="OFFLINE.*the existing file is wrong"):
        load_model("tiny_diffusion")
    place().write_bytes(server.content)
    assert load_model("tiny_diffusion").digest == DIGEST
    assert server.ranges == []


def test_a_model_that_no_program_can_fetch(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be downloaded automatically") as caught:
        load_model("ddpm_celeba")
    assert published.get("ddpm_celeba").page in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value)


def test_the_classifier_that_belongs_to_a_model(server: Server, tmp_path: Path) -> None:
    assert paired_classifier("tiny_diffusion") == "tiny_classifier"
    assert paired_classifier("fashion-mnist-32") == "fashion-mnist-32-classifier"
    assert paired_classifier("lsun_cat") is paired_classifier("tiny_classifier") is paired_classifier("x.pt") is None
    file = tmp_path / "tiny_diffusion.pt"
    file.write_bytes(server.content)
    assert paired_classifier(file) == "tiny_classifier"
    assert paired_classifier(f"{file}@256x256_diffusion_uncond") == "256x256_classifier"
    (tmp_path / "tiny_classifier.pt").write_bytes(content_of(weights_of(CLASSIFIER)))
    beside = paired_classifier(str(file))
    assert beside == str(tmp_path / "tiny_classifier.pt")
    assert load_classifier(beside).published == published.get("tiny_classifier")
