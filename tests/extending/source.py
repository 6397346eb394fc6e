"""A user's data source in one file: bars of four directions, drawn on request.

python train.py --plugin tests/extending/source.py --config.data.name=bars:120
"""

import numpy as np

import aa_flax
from aa_flax import InputError

DIRECTIONS = {"-": (0, 1), "|": (1, 0), "\\": (1, 1), "/": (1, -1)}


class Bars:
    """`count` grey bars on black at random positions, in four alternating directions."""

    class_names = tuple(DIRECTIONS)
    num_classes = len(DIRECTIONS)

    def __init__(self, count: int, size: int, seed: int):
        self._count, self._size, self._seed = count, size, seed

    def name(self, index: int) -> str:
        return f"bar {index}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        label = index % self.num_classes
        rng = np.random.default_rng((self._seed, index))
        rows, columns = (
            np.indices((self._size, self._size)) - rng.integers(8, self._size - 8, 2)[:, None, None]
        )
        down, right = DIRECTIONS[self.class_names[label]]
        on = (np.abs(rows * right - columns * down) <= 2) & (np.hypot(rows, columns) < 12)
        image = np.where(on, rng.integers(100, 256), 0).astype(np.uint8)
        return {"image": np.repeat(image[..., None], 3, axis=-1), "label": label}


def bars(data, split: str) -> Bars:
    """Creates the source `bars:COUNT`: COUNT for training, a quarter of it for validation."""
    count = data.name.partition(":")[2]
    if not count.isdecimal() or int(count) < 16:
        raise InputError(f"{data.name!r}: give a number of bars, 16 or more, e.g. bars:120")
    if split == "train":
        return Bars(int(count), data.image_size, seed=0)
    return Bars(int(count) // 4, data.image_size, seed=1)


aa_flax.register_source("bars", bars)
