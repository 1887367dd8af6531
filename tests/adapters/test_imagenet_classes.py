"""ImageNet's class names: all there, in the order of the published models, and found as people write them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from support.cli_runs import call
from undiffuse.adapters import imagenet_classes as classes
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel, check_pair, load_diffusion, save_model
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.pictures.names import parse_name, sample_name

# As torchvision's table of weights numbers and calls them; for two classes it adds a word to the first of the synset.
ELSEWHERE = {134: "crane bird", 639: "maillot tank suit"}
FIRST_WORDS = [ELSEWHERE.get(k, classes.synonyms(k)[0]) for k in range(classes.COUNT)]


def test_ids_and_words_are_those_of_other_sources() -> None:
    """Hashes of torchvision's list of names, and of the synset ids and words in WordNet 3.0's own data.noun."""
    ids = [classes.synset(k) for k in range(1000)]
    assert ids == sorted(set(ids))
    assert (ids[0], ids[207], ids[999]) == ("n01440764", "n02099601", "n15075141")

    def digest(lines: list[str]) -> str:
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    assert digest(ids) == "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    assert digest(FIRST_WORDS) == "0b0f9fee7c952f257418d62aa701f023a9da13b443a14f5c4291e5724d92967c"
    assert (
        digest([", ".join(classes.synonyms(k)) for k in range(1000)])
        == "a40d9be82eb4738becd1dd69991b89f87f309975e860a6f3f45395d8c06a7e0d"
    )


def test_names_are_unique_whatever_their_case_and_fit_everywhere() -> None:
    names = classes.names()
    assert len({name.casefold() for name in names}) == 1000
    assert not [name for name in names if "," in name or not name.isascii() or name != name.strip() or not name]
    files = [sample_name(0, 0, k, name) for k, name in enumerate(names)]
    assert [parse_name(file).label for file in files] == list(range(1000))  # type: ignore[union-attr]
    different = {names[k] for k in range(1000) if names[k] != classes.synonyms(k)[0]}
    assert different == {
        "crane (bird)", "crane (machine)", "maillot (tights)", "maillot (tank suit)", "Cardigan Welsh corgi"
    }  # fmt: skip


def test_every_class_is_found_by_all_that_names_it() -> None:
    for k, name in enumerate(classes.names()):
        for text in (str(k), classes.synset(k), classes.synset(k).upper(), name, name.upper(), name.replace(" ", "_"),
                     name.replace(" ", ""), f" {name.replace(' ', '-')} "):  # fmt: skip
            assert classes.find(text) == [k], text
        assert k in classes.find(FIRST_WORDS[k])
        assert k in classes.find(", ".join(classes.synonyms(k)))  # the whole line of the usual lists
        for word in classes.synonyms(k):
            found = classes.find(word)
            # A word of several classes is found for all of them, unless it is the very name of one.
            assert k in found or [classes.names()[i].casefold() for i in found] == [word.casefold()], word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Labrador", [208]),  # a word of one name
        ("retriever", [205, 206, 207, 208, 209]),
        ("retriev", [205, 206, 207, 208, 209]),  # no word, but a part
        ("ape", []),  # few letters within a word (candle, taper; toilet tissue, toilet paper) mean nothing
        ("goldf", [1, 11]),
        ("koa", [105]),  # but at the beginning of one they do
        ("crane", [134, 517]),
        ("panda", [387, 388]),  # a synonym of two
        ("tub", [876]),  # the name of one, a synonym of another (bathtub)
        ("Cardigan", [264]),  # letter for letter WordNet's word for the dog
        ("cardigan", [474]),
        ("CARDIGAN", [474]),
        ("sunglass", [836]),
        ("sunglasses", [837]),
        ("jack o lantern", [607]),
        ("welsh corgi", [263, 264]),
        ("corgi welsh", [263, 264]),  # words in any order
        ("owl", [24]),  # a whole word wins over those that it is a part of, such as bowl
        ("007", [7]),
        ("1000", []),
        ("-1", []),
        ("", []),
        ("   ", []),
        ("'", []),
        ("qwertz", []),
    ],
)
def test_what_is_found(text: str, expected: list[int]) -> None:
    assert classes.find(text) == expected


def test_exact_leaves_words_and_parts_out() -> None:
    assert classes.exact("golden_retriever") == [207]
    assert classes.exact("Labrador") == classes.exact("retriever") == classes.exact("") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("retriever", "could mean flat-coated retriever (205), curly-coated retriever (206), golden retriever (207)"),
        ("retriever", "`undiffuse models --classes retriever` lists them"),
        ("golden retreiver", "did you mean golden retriever?"),
        ("zebra cake", "did you mean zebra?"),
        ("qwertz", "none of ImageNet's 1000. `undiffuse models --classes TEXT` searches them"),
        ("1000", "ImageNet's classes are 0 to 999"),
        ("-1", "ImageNet's classes are 0 to 999"),
        ("dog", "and 6 more; give a full name or a number"),
        ("giant panda bear dog", "did you mean"),
        ("", "the name of a class is missing"),
    ],
)
def test_messages(text: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        classes.index_of(text)
    assert told in str(error.value)


def test_a_number_out_of_range_is_no_class() -> None:
    for ask in (classes.synset, classes.synonyms):
        for index in (-1, 1000):
            with pytest.raises(ValueError, match="does not exist"):
                ask(index)


def test_search_puts_the_best_first() -> None:
    assert classes.search() == list(range(1000))
    assert classes.search(limit=3) == [0, 1, 2]
    assert classes.search("tench") == [0]
    found = classes.search("husky")
    assert found[0] == 248  # Eskimo dog, husky: an exact synonym
    assert classes.names().index("Siberian husky") in found[1:]
    assert classes.search("ox")[0] == 345
    assert classes.search("ox", limit=2) == classes.search("ox")[:2]
    assert classes.search("goldn retriever") == classes.search("qwertz") == []


def test_what_is_spelled_alike() -> None:
    assert classes.similar("goldn retriever")[0] == 207
    assert classes.similar("zebra cake") == [340]  # nothing is: what has a word of it
    assert classes.similar("qwertz") == classes.similar("") == []


def test_the_words_come_with_their_licence() -> None:
    licence = (resources.files("undiffuse") / "assets" / "imagenet_classes.LICENSE.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University." in licence


def test_importing_reads_nothing() -> None:
    code = (
        "import sys\n"
        "from undiffuse.adapters import imagenet_classes as c\n"
        "assert c._table.cache_info().misses == 0\n"
        "assert not {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "assert c.index_of('tench') == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def tiny(labels: tuple[str, ...] | None, classes_count: int = 1000) -> DiffusionModel:
    net = UNetConfig(
        image_size=4, in_channels=1, out_channels=1, model_channels=2, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), num_classes=classes_count,
    ).build()  # fmt: skip
    return DiffusionModel(
        net=net, process=ProcessConfig(schedule="cosine", steps=20, variance="fixed_small"), labels=labels
    )


def test_a_model_of_imagenet_understands_synonyms_and_others_do_not() -> None:
    model = tiny(classes.names())
    for text in ("golden retriever", "Golden_Retriever", "n02099601", "207", 207):
        assert model.class_index(text) == 207
    with pytest.raises(ValueError, match="could mean lesser panda"):
        model.class_index("panda")
    with pytest.raises(ValueError, match="is none of the model's classes"):
        tiny(("n1", "n2"), 2).class_index("n02099601")
    shuffled = tiny(classes.names()[::-1])
    assert shuffled.class_index("tench") == 999


def test_many_classes_make_no_endless_message() -> None:
    model = tiny(classes.names()[::-1])
    net = ClassifierConfig(
        image_size=4, in_channels=1, model_channels=2, out_channels=2, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), pool="adaptive",
    ).build()  # fmt: skip
    with pytest.raises(ValueError) as error:
        check_pair(model, ClassifierModel(net=net, process=model.process, labels=("cat", "dog")))
    assert "and 990 more against cat, dog" in str(error.value)
    with pytest.raises(ValueError, match="and 980 more; give a full name"):
        model.class_index("qwertz")


def test_sample_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, tiny(classes.names()))
    assert load_diffusion(path).label_name(207) == "golden retriever"
    words = ["sample", "--model", path, "--count", 3, "--steps", 2, "--format", "npz", "--out", tmp_path / "out"]
    assert call(*words, "--class", "Golden_Retriever,n01440764", "--class", "jack-o'-lantern") == 0
    (file,) = (tmp_path / "out").glob("*.npz")
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["arr_1"].tolist() == [207, 0, 607]
    capsys.readouterr()
    assert call(*words, "--overwrite", "--class", "retriever") == 2
    assert "could mean flat-coated retriever (205)" in capsys.readouterr().err
