"""One pass over images: the same numbers for any batch, cache, process and restart; broken features are named."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.evaluation_sets import Toy, images, save_npz
from support.training_runs import Processes
from undiffuse.distributed import session
from undiffuse.evaluation import FeatureCache, MadeImages, extract, open_images
from undiffuse.evaluation.features import SHARD
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import Extracted

COUNT, MANY = 2 * SHARD + 37, 9 * SHARD + 37


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    return open_images(save_npz(tmp_path / "a.npz", images(COUNT)))


def test_features_are_those_of_the_extractor_in_the_order_of_the_images(stored: Any) -> None:
    toy = Toy()
    told: list[int] = []
    found = extract(stored, [toy, Toy("other")], batch=50, progress=told.append)
    whole = toy(stored.batch(0, COUNT))
    assert torch.allclose(found[0].features, whole.features, atol=1e-6)
    assert whole.spatial is not None
    assert found[0].spatial is not None
    assert torch.allclose(found[0].spatial, whole.spatial, atol=1e-6)
    assert [f.card.protocol for f in found] == ["toy", "other"]
    assert told == [SHARD, SHARD, 37]
    assert found[0].about["n"] == COUNT


def test_a_pass_over_known_images_asks_no_extractor_again(stored: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    first = extract(stored, [Toy()], cache=cache)[0]
    again = Toy()
    second = extract(stored, [again], cache=cache)[0]
    assert again.calls == 0
    assert torch.equal(first.features, second.features)
    assert first.about["sha256"] == second.about["sha256"]
    other = Toy("other")
    extract(stored, [other], cache=cache)
    assert other.calls == COUNT  # another card, other features


def test_a_stopped_pass_goes_on_where_it_was(stored: Any, tmp_path: Path) -> None:
    class Stops(Toy):
        def __call__(self, pixels: Any) -> Extracted:
            if self.calls >= SHARD:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    cache = FeatureCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        extract(stored, [Stops()], cache=cache)
    rest = Toy()
    found = extract(stored, [rest], cache=cache)[0]
    assert rest.calls == COUNT - SHARD
    assert torch.equal(found.features, extract(stored, [Toy()])[0].features)


def test_changed_pixels_are_seen(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    pictures = images(COUNT)
    before = extract(open_images(save_npz(tmp_path / "a.npz", pictures)), [Toy()], cache=cache)[0]
    pictures[SHARD + 3, 0, 0, 0] ^= 1
    toy = Toy()
    after = extract(open_images(save_npz(tmp_path / "b.npz", pictures)), [toy], cache=cache)[0]
    assert toy.calls == SHARD
    assert before.about["sha256"] != after.about["sha256"]
    assert not torch.equal(before.features[SHARD + 3], after.features[SHARD + 3])


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_entry_is_computed_again(stored: Any, tmp_path: Path, damage: str) -> None:
    cache = FeatureCache(tmp_path / "cache")
    right = extract(stored, [Toy()], cache=cache)[0].features
    for file in sorted((tmp_path / "cache").rglob("*.safetensors")):
        data = bytearray(file.read_bytes())
        if damage == "bit":
            data[-9] ^= 4
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"" if damage == "empty" else bytes(data))
    toy = Toy()
    assert torch.equal(extract(stored, [toy], cache=cache)[0].features, right)
    assert toy.calls == COUNT


def test_a_cache_that_cannot_be_written_stops_nothing(stored: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = extract(stored, [Toy()], cache=FeatureCache(tmp_path / "file" / "cache"))[0]
    assert len(found) == COUNT


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    import os

    cache = FeatureCache(tmp_path, limit=3000)
    for number in range(6):
        key = f"{number:02d}" + "0" * 62
        cache.put(key, {"x": torch.full((200,), float(number))})
        os.utime(tmp_path / key[:2] / f"{key}.safetensors", (number, number))
    cache.get("00" + "0" * 62)  # used again: young
    cache.trim()
    left = {path.name[:2] for path in tmp_path.rglob("*.safetensors")}
    assert "00" in left
    assert "01" not in left
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 3000


def counting(numbers: list[int]) -> torch.Tensor:
    return torch.from_numpy(images(COUNT))[numbers]


def test_made_images_are_not_made_again_and_can_be_kept_for_another_extractor(tmp_path: Path) -> None:
    made: list[int] = []

    def make(numbers: list[int]) -> torch.Tensor:
        made.extend(numbers)
        return counting(numbers)

    def samples() -> MadeImages:
        return MadeImages(make, COUNT, (8, 8, 3), where="m", identity={"seed": 0}, batch=64)

    cache = FeatureCache(tmp_path)
    first = extract(samples(), [Toy()], cache=cache)[0]
    assert len(made) == COUNT
    second = extract(samples(), [Toy()], cache=cache)[0]
    assert len(made) == COUNT
    assert second.about["sha256"] == first.about["sha256"]
    extract(samples(), [Toy("second")], cache=cache, keep_images=True)
    assert len(made) == 2 * COUNT  # nothing was kept before
    extract(samples(), [Toy("third")], cache=cache, keep_images=True)
    assert len(made) == 2 * COUNT
    stored = extract(open_images(save_npz(tmp_path / "same.npz", images(COUNT))), [Toy()])[0]
    assert stored.about["sha256"] == first.about["sha256"]
    assert torch.equal(stored.features, first.features)


def share(folder: str) -> None:
    """Two sets of images, one made by a model; rank 1 is slow."""

    class Slow(Toy):
        def __call__(self, pixels: Any) -> Extracted:
            time.sleep(0.3 if os.environ.get("RANK") == "1" else 0.0)
            return super().__call__(pixels)

    stored = open_images(Path(folder, "a.npz"))
    with session("cpu") as ranks:
        toy, told = Slow(), list[float]()
        found = extract(stored, [toy, Toy("plain")], ranks=ranks, progress=told.append)
        made = extract(MadeImages(counting, 3, (8, 8, 3), where="m", identity={}), [Toy()], ranks=ranks)[0]
        spatial = found[0].spatial
        assert spatial is not None
        tensors = {"features": found[0].features, "spatial": spatial, "plain": found[1].features, "made": made.features}
        about = {"sha256": found[0].about["sha256"], "calls": str(toy.calls), "told": str(round(sum(told)))}
        save_file(tensors, Path(folder, f"{ranks.world_size}-{ranks.rank}.safetensors"), metadata=about)


def test_processes_share_the_work_and_get_the_same_bits(tmp_path: Path) -> None:
    """Every shard is computed once; a process that is slow takes fewer of them."""
    save_npz(tmp_path / "a.npz", images(MANY))
    share(str(tmp_path))
    whole = load_file(tmp_path / "1-0.safetensors")
    for world_size in (2, 4):
        assert Processes(share, str(tmp_path), world_size=world_size).join(120) == [0] * world_size
        calls = []
        for rank in range(world_size):
            path = tmp_path / f"{world_size}-{rank}.safetensors"
            found = load_file(path)
            assert all(torch.equal(found[name], whole[name]) for name in whole)
            with safe_open(path, framework="pt") as file, safe_open(tmp_path / "1-0.safetensors", "pt") as one:
                about = file.metadata()
                assert about["sha256"] == one.metadata()["sha256"]
            calls.append(int(about["calls"]))
            assert rank or int(about["told"]) == MANY  # the bar of rank 0 shows the work of all
        assert sum(calls) == MANY
        assert calls[1] <= 2 * SHARD


def test_features_that_are_not_finite_name_the_image(stored: Any) -> None:
    class Breaks(Toy):
        def __call__(self, pixels: Any) -> Extracted:
            found = super().__call__(pixels)
            if self.calls > SHARD:
                found.features[3, 1] = float("nan")
            return found

    with pytest.raises(MetricError, match=f"the first is image {SHARD + 3}"):
        extract(stored, [Breaks()], batch=SHARD)


def test_images_of_another_shape_than_promised_are_refused() -> None:
    wrong = MadeImages(lambda n: torch.zeros(len(n), 4, 4, 3, dtype=torch.uint8), 3, (8, 8, 3), where="m", identity={})
    with pytest.raises(MetricError, match=r"expected uint8 \[3, 8, 8, 3\]"):
        extract(wrong, [Toy()])
    floats = MadeImages(lambda n: torch.zeros(len(n), 8, 8, 3), 3, (8, 8, 3), where="m", identity={})
    with pytest.raises(MetricError, match="float32"):
        extract(floats, [Toy()])
    with pytest.raises(MetricError, match="extractor"):
        extract(wrong, [])


def test_labels_go_along(tmp_path: Path) -> None:
    labels = np.arange(COUNT) % 3
    found = extract(open_images(save_npz(tmp_path / "l.npz", images(COUNT), arr_1=labels)), [Toy()])[0]
    assert found.labels is not None
    assert found.labels.tolist() == labels.tolist()
    assert sum(found.about["class_counts"]) == COUNT
