import pytest

from aa_flax import InputError
from aa_flax.data.splits import parse_name, part_of

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
def test_parts_are_those_that_tfds_writes(expression, expected):
    _, expressions = parse_name(f"name#{expression},extra")
    assert part_of("train", expressions, LENGTHS, "name") == ("train", expected)
    assert part_of("val", expressions, LENGTHS, "name") == ("extra", range(5))


@pytest.mark.parametrize(("split", "own"), [("train", "train"), ("val", "valid")])
def test_without_parts_the_usual_splits_are_taken(split, own):
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
def test_parts_that_are_none_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        part_of("val", parse_name(text)[1], LENGTHS, "name")
