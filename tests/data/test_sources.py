import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data import sources
from aa_flax.data.digits import Digits
from aa_flax.data.sources import make_source
from aa_flax.data.tfds import parse_name, part_of


def test_digits_are_split_into_1347_and_450_with_every_class():
    for split, count in (("train", 1347), ("val", 450)):
        source = Digits(split)
        assert len(source) == count
        assert {source[i]["label"] for i in range(count)} == set(range(10))


def test_digits_are_centred_on_a_black_canvas():
    image = Digits("val", image_size=48)[0]["image"]
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert image[8:40, 8:40].max() > 200
    outside = image.copy()
    outside[8:40, 8:40] = 0
    assert not outside.any()


def test_unknown_splits_sources_and_sizes_are_refused():
    with pytest.raises(InputError, match="train and val, got 'test'"):
        make_source(ConfigDict({"name": "digits"}), "test")
    with pytest.raises(InputError, match="32 pixels wide, got image_size 20"):
        Digits("val", image_size=20)
    unknown = r"unknown data source \(config\.data\.name\) "
    with pytest.raises(
        InputError, match=unknown + "'mnist'; known: digits, folder, tfds, hfds, wds"
    ):
        make_source(ConfigDict({"name": "mnist"}), "val")
    with pytest.raises(InputError, match=unknown + r"'foldr'; did you mean folder\?"):
        make_source(ConfigDict({"name": "foldr:x"}), "val")
    with pytest.raises(InputError, match="'digits:8': digits has no argument '8'"):
        make_source(ConfigDict({"name": "digits:8"}), "val")


class Squares:
    """A source as users write them: one square of each of two greys."""

    num_classes = 2
    class_names = ("dark", "light")

    def __init__(self, data, split):
        self.greys = {"train": (0, 255), "val": (30, 220)}[split]
        self.size = int(data.name.partition(":")[2])

    def name(self, index):
        return f"square {index}"

    def __len__(self):
        return 2

    def __getitem__(self, index):
        grey = self.greys[index]
        return {"image": np.full((self.size, self.size, 3), grey, np.uint8), "label": index}


@pytest.fixture
def table(monkeypatch):
    """Removes the sources that a test registers."""
    monkeypatch.setattr(sources._SOURCES, "_items", dict(sources._SOURCES))


def test_a_registered_source_is_made_by_its_name(table):
    sources.register_source("squares", Squares)
    source = make_source(ConfigDict({"name": "squares:5"}), "val")
    assert source[1]["image"].shape == (5, 5, 3)
    with pytest.raises(InputError, match="'squares' already; choose another name, or give replace"):
        sources.register_source("squares", lambda data, split: source)
    sources.register_source("squares", lambda data, split: source, replace=True)
    assert make_source(ConfigDict({"name": "squares"}), "train") is source
    for name in ("", "a:b"):
        with pytest.raises(InputError, match=f"named without a colon, got '{name}'"):
            sources.register_source(name, Squares)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("class_names", ("dark",), "'mine:5' has num_classes 2, but 1 class_names"),
        ("__len__", lambda self: 0, "'mine:5' has no images"),
        ("class_names", ("dark", "dark"), "calls both class 0 and class 1 dark; give each class"),
        ("class_names", (1, "1"), "calls both class 0 and class 1 1; give"),
    ],
)
def test_a_malformed_source_is_refused(table, attribute, value, message):
    sources.register_source("mine", type("Mine", (Squares,), {attribute: value}))
    with pytest.raises(InputError, match=message):
        make_source(ConfigDict({"name": "mine:5"}), "val")


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (("light", "dark"), "number their classes differently: 0 is dark in one and light in the"),
        (("dark", "grey"), "have different classes: grey, light only in one of them"),
    ],
)
def test_a_label_means_one_class_in_training_and_in_validation(table, val, message):
    class Mine(Squares):
        def __init__(self, data, split):
            super().__init__(data, split)
            self.class_names = np.array(val) if split == "val" else ("dark", "light")

    sources.register_source("mine", Mine)
    with pytest.raises(InputError, match=f"^train of mine:5 and val of mine:5 {message}"):
        sources.make_sources(ConfigDict({"name": "mine:5"}))
    val = np.array(("dark", "light"))
    assert set(sources.make_sources(ConfigDict({"name": "mine:5"}))) == {"train", "val"}


def test_what_a_source_lacks_is_listed(table):
    sources.register_source("list", lambda data, split: [])
    with pytest.raises(InputError, match="'list' has no num_classes, class_names, name; see"):
        make_source(ConfigDict({"name": "list"}), "val")


def test_digests_differ_with_the_images_and_are_the_same_again():
    digests = [Digits("val").digest(), Digits("train").digest(), Digits("val", 50).digest()]
    assert len(set(digests)) == 3
    assert Digits("val").digest() == digests[0]


LENGTHS = {"train": 200, "extra": 5}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("train", range(200)),
        ("train[:90%]", range(180)),
        ("train[90%:]", range(180, 200)),
        ("train[-10%:]", range(180, 200)),
        ("train[5:7]", range(5, 7)),
        ("train[-3:]", range(197, 200)),
        ("train[:1000]", range(200)),
    ],
)
def test_parts_are_in_the_notation_of_tfds(expression, expected):
    _, expressions = parse_name(f"name#{expression},extra")
    assert part_of("train", expressions, LENGTHS, "name") == ("train", expected)
    assert part_of("val", expressions, LENGTHS, "name") == ("extra", range(5))


@pytest.mark.parametrize(("split", "own"), [("train", "train"), ("val", "valid")])
def test_without_parts_the_usual_splits_are_used(split, own):
    assert part_of(split, {}, {"test": 1, "valid": 2, "train": 3}, "name")[0] == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", r"name has no split validation or val or valid or test; it has train, extra; say"),
        ("name#train", "does not say what train and val are; give NAME#TRAIN,VAL"),
        ("name#train,dev[:5]", "name has no split 'dev'; it has train, extra"),
        ("name#train,train[:5", r"'train\[:5' is not a part of a split"),
        ("name#train,train[a:]", "is not a part of a split"),
        ("name#train,train[7:7]", r"train\[7:7\] of name is empty; train has 200"),
    ],
)
def test_malformed_parts_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        part_of("val", parse_name(text)[1], LENGTHS, "name")
