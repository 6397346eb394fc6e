import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data.sources import Digits, make_source


def test_digits_are_split_into_1347_and_450_with_every_class():
    for split, count in (("train", 1347), ("val", 450)):
        source = Digits(split)
        assert len(source) == count
        assert {source[i]["label"] for i in range(count)} == set(range(10))


def test_digits_stand_in_the_middle_of_a_black_canvas():
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
    with pytest.raises(InputError, match="'mnist'; known: digits, folder, tfds:"):
        make_source(ConfigDict({"name": "mnist"}), "val")
