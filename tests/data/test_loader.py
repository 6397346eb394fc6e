from itertools import islice

import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.data.loader import evaluation_batches, steps_per_epoch, training_batches
from configs import digits_resnet18

DATA = digits_resnet18.get_config().data  # images as they are
DATA.crop_size = 2


class Numbered:
    """Ten images, each telling its own number."""

    num_classes = 10

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 3), index, np.uint8), "label": index}


def labels(batches, count):
    return [batch["label"].tolist() for batch in islice(batches, count)]


@pytest.mark.parametrize("batch_size", [2, 4, 10, 16])
def test_evaluation_counts_every_image_once_in_order(batch_size):
    batches = list(evaluation_batches(Numbered(), batch_size, DATA, crop=2))
    assert all(len(batch["label"]) == batch_size for batch in batches)
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(10))
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0])


def test_an_epoch_shows_no_image_twice_and_the_next_has_another_order():
    epoch = np.array(labels(training_batches(Numbered(), 4, DATA, seed=0), 4)).reshape(2, 8)
    assert [len(set(order)) for order in epoch.tolist()] == [8, 8]
    assert epoch[0].tolist() != epoch[1].tolist()


def test_training_batches_follow_from_seed_and_step_alone():
    stream = labels(training_batches(Numbered(), 4, DATA, seed=3), 7)
    assert labels(training_batches(Numbered(), 4, DATA, seed=3, start_step=5), 2) == stream[5:]
    assert labels(training_batches(Numbered(), 4, DATA, seed=4), 7) != stream


def test_batch_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"batch_size 12 is larger .*10 images"):
        steps_per_epoch(Numbered(), 12)
    with pytest.raises(InputError, match="batch_size 3 does not divide among 2 devices"):
        evaluation_batches(Numbered(), 3, DATA, crop=2)
