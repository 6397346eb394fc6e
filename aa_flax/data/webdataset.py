"""Images in WebDataset's tar files, read at random."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aa_flax.data.classes import (
    check_classes_agree,
    check_labels,
    declared_classes,
    numbered_classes,
    read_classes,
)
from aa_flax.data.digest import digest
from aa_flax.data.images import Example, ImageError, decode
from aa_flax.data.shard_names import find_shards
from aa_flax.data.tar_index import load_shard_index
from aa_flax.errors import InputError
from aa_flax.files import local_path

_NAMES = "classes.txt"


class WebDataset:
    """The samples of tar shards, in order: `KEY.jpg` (or another image) and its class number.

    The number is the text in `KEY.cls`, or `label` in `KEY.json`. Class names are the lines of
    `classes.txt` in the folder that holds the shards or their folders, or of equal ones in several
    of these; without it classes are numbers, up to the largest in the shards of both splits.

    Args:
        pattern: see `find_shards`.
        path: the folder it is relative to; "": the present one.
        split: `train` or `val`.
        class_order: see `declared_classes`, or, where there are no names, `numbered_classes`.

    Raises:
        InputError: no shards, or shards that cannot be read; a label that is no class.
    """

    def __init__(self, pattern: str, path: str, split: str, class_order: str = ""):
        root = local_path(path, "config.data.path")
        pattern = os.fspath(local_path(pattern, "config.data.name"))
        shards = find_shards(pattern, root)
        if not shards[split]:
            raise InputError(
                f"{root / pattern} has no shards for {split}; their names have to hold "
                f"{'train' if split == 'train' else 'val, validation or test'} "
                "(put a pattern with braces in quotes, or the shell takes it apart)"
            )
        self._shards = [os.fspath(shard) for shard in shards[split]]
        folders = [os.path.abspath(shard.parent) for each in shards.values() for shard in each]
        self._base = os.path.commonpath(folders)
        self._index = load_shard_index(shards[split])
        labels, where = self._index.label, os.fspath(root / pattern)
        own = _class_names(Path(self._base), map(Path, folders))
        if own:
            check_labels(labels, len(own), self.name)
            self.class_names, label_of = declared_classes(own, class_order, where)
            labels = label_of[labels]
        else:
            every = [load_shard_index(each) for each in shards.values() if each]
            largest = max(index.label.max(initial=-1) for index in every)
            self.class_names = numbered_classes(int(largest) + 1, class_order, where)
            check_labels(labels, len(self.class_names), self.name)
        self.num_classes = len(self.class_names)
        self._labels = labels.astype(np.int32)

    def name(self, index: int) -> str:
        """The shard and key of an image."""
        key = os.fsdecode(self._index.keys[index])
        return f"{self._shards[self._index.shard_of[index]]}/{key}"

    def digest(self) -> str:
        """A hash of the classes, of the shards' names and the keys in them, and of the labels."""
        shards = [os.path.relpath(shard, self._base) for shard in self._shards]
        keys = self._index.keys.view(np.uint8)
        return digest("wds", self.class_names, shards, self._index.shard_of, keys, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        place = self._index
        try:
            with open(self._shards[place.shard_of[index]], "rb") as shard:
                shard.seek(place.offset[index])
                encoded = shard.read(place.size[index])
        except OSError as error:
            raise ImageError.of(self.name(index), error) from error
        return {"image": decode(encoded, self.name(index)), "label": int(self._labels[index])}


def _class_names(base: Path, folders: Iterable[Path]) -> list[str]:
    """The lines of the `classes.txt` in these folders and up to `base`; none without one."""
    every = {above for folder in folders for above in (folder, *folder.parents)}
    files = [above / _NAMES for above in sorted(every) if above.is_relative_to(base)]
    found = {str(file): read_classes(file) for file in files if file.is_file()}
    if found:
        check_classes_agree(found, f"leave one {_NAMES}, beside the folders of the shards")
    return next(iter(found.values()), [])
