"""One pass over images: the same numbers for any batch, cache, process and restart; broken features are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.evaluation_sets import Toy, images, save_npz
from undiffuse.distributed import DistContext
from undiffuse.evaluation import FeatureCache, MadeImages, extract, open_images
from undiffuse.evaluation.features import SHARD
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import Extracted

COUNT = 2 * SHARD + 37


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


def test_processes_share_the_work_and_get_the_same_bits(stored: Any) -> None:
    """Every process computes its shards; gathering is played by putting their parts together in order of rank."""
    alone = extract(stored, [Toy()])[0]
    for world_size in (2, 3, 5):
        toys = [Toy() for _ in range(world_size)]
        results = simulate(stored, toys, world_size)
        for found in results:
            assert torch.equal(found.features, alone.features)
            assert found.about["sha256"] == alone.about["sha256"]
        assert sum(toy.calls for toy in toys) == COUNT


def simulate(stored: Any, toys: list[Toy], world_size: int) -> list[Any]:
    import threading

    barrier = threading.Barrier(world_size)
    table: dict[int, torch.Tensor] = {}
    results: list[Any] = [None] * world_size

    class Rank(DistContext):
        def gather(self, tensor: torch.Tensor) -> torch.Tensor:
            barrier.wait()
            table[self.rank] = tensor
            barrier.wait()
            whole = torch.cat([table[r] for r in range(world_size)])
            barrier.wait()
            return whole

    def work(rank: int) -> None:
        results[rank] = extract(stored, [toys[rank]], ranks=Rank(rank=rank, world_size=world_size))[0]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


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
