"""Sources of labelled images with random access, and the open table of their kinds."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aa_flax.config import DataConfig
from aa_flax.data.classes import check_classes_agree, first_repeated
from aa_flax.data.digits import Digits
from aa_flax.data.folder import ImageFolder
from aa_flax.data.hfds import HFDS
from aa_flax.data.pixels import Example
from aa_flax.data.tfds import TFDS
from aa_flax.data.webdataset import WebDataset
from aa_flax.errors import InputError, Table


class Source(Protocol):
    """Random access to labelled images.

    Threads read from it concurrently; with `worker_type=process` it is pickled for each process. It
    may have a method `digest() -> str`, a hash of its classes, images and labels, by which a run
    that resumes detects other data.

    Attributes:
        num_classes: labels are `0 .. num_classes - 1`.
        class_names: of every class, e.g. its folder's; distinct, and the same for both splits.
    """

    num_classes: int

    @property
    def class_names(self) -> Sequence[str]: ...

    def name(self, index: int) -> str:
        """Returns a name for an image, e.g. its path."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns `image`, PIL in mode RGB or uint8 `(H, W, 3)`, and `label`, an integer.

        Raises:
            ImageError: (`aa_flax.data.pixels`) the image cannot be read; any other exception ends
                the run, also with `config.data.on_error` "skip".
        """
        ...


# Makes the source of a split, "train" or "val", from `config.data`.
Factory = Callable[[DataConfig, str], Source]

_SOURCES: Table[Factory] = Table("data source (config.data.name)")


def register_source(kind: str, factory: Factory, *, replace: bool = False) -> None:
    """Adds a kind of data: `--config.data.name=KIND`, or `KIND:` and anything the factory reads.

    Args:
        kind: the part of `config.data.name` before the first colon.
        factory: called with `config.data`, whose `name` and `path` it may use, and the split,
            `train` or `val`; returns an `aa_flax.data.sources.Source`.
        replace: replaces an existing kind.

    Raises:
        InputError: there is such a kind already, or the name is empty or has a colon.

    Examples:
        >>> import aa_flax, numpy as np
        >>> class Greys:
        ...     num_classes, class_names = 2, ("dark", "light")
        ...     def __init__(self, data, split):
        ...         self.size = data.image_size
        ...     def name(self, index):
        ...         return f"grey {index}"
        ...     def __len__(self):
        ...         return 2
        ...     def __getitem__(self, index):
        ...         image = np.full((self.size, self.size, 3), 60 + 120 * index, np.uint8)
        ...         return {"image": image, "label": index}
        >>> aa_flax.register_source("greys", Greys)
    """
    if not kind or ":" in kind:
        raise InputError(f"a kind of data source is named without a colon, got {kind!r}")
    _SOURCES.register(kind, factory, replace=replace)


def make_source(data: DataConfig, split: str) -> Source:
    """Makes the source of a split, `train` or `val`, that `config.data` names.

    Its `name` is a registered kind, with or without `:` and an argument: `digits`, `folder`,
    `tfds:NAME`, `hfds:NAME`, `wds:PATTERN` or one that `register_source` added.

    Raises:
        InputError: the source is unknown, or cannot be read; the message says why.
    """
    if split not in ("train", "val"):
        raise InputError(f"the splits of a data set are train and val, got {split!r}")
    kind, _, _ = data.name.partition(":")
    source = _SOURCES[kind](data, split)
    check_source(source, f"the source of config.data.name {data.name!r}")
    return source


def make_sources(data: DataConfig) -> dict[str, Source]:
    """Makes the sources for `train` and `val`, in which a label must mean the same class."""
    sources = {split: make_source(data, split) for split in ("train", "val")}
    check_classes_agree({f"{split} of {data.name}": s.class_names for split, s in sources.items()})
    return sources


def check_source(source: Any, what: str) -> None:
    """Checks a source, which may be custom and is `what` in errors; not its images."""
    needed = ("num_classes", "class_names", "name", "__len__", "__getitem__")
    missing = [one for one in needed if not hasattr(source, one)]
    if missing:
        raise InputError(f"{what} has no {', '.join(missing)}; see aa_flax.data.sources.Source")
    if len(source.class_names) != source.num_classes:
        raise InputError(
            f"{what} has num_classes {source.num_classes}, but {len(source.class_names)} "
            "class_names; give each class a name"
        )
    if repeated := first_repeated(source.class_names):
        name, first, second = repeated
        raise InputError(
            f"{what} calls both class {first} and class {second} {name}; give each class its own "
            "name"
        )
    if not len(source):
        raise InputError(f"{what} has no images")


def _built_in(make: Callable[[DataConfig, str, str], Source], argument: str = "") -> Factory:
    """Makes a factory that passes on the argument after the kind, which is described for errors."""

    def factory(data: DataConfig, split: str) -> Source:
        kind, colon, given = data.name.partition(":")
        if argument and not given:
            raise InputError(f"config.data.name {data.name!r} lacks {argument}")
        if colon and not argument:
            raise InputError(
                f"config.data.name {data.name!r}: {kind} has no argument {given!r}; give the "
                "folder of images as --config.data.path"
            )
        return make(data, given, split)

    return factory


for _kind, _factory in {
    "digits": _built_in(lambda data, _, split: Digits(split, data.image_size)),
    "folder": _built_in(lambda data, _, split: ImageFolder(data.path, split, data.class_order)),
    "tfds": _built_in(
        lambda data, name, split: TFDS(name, data.path, split, data.class_order),
        "the name of a TFDS data set, e.g. tfds:imagenet2012",
    ),
    "hfds": _built_in(
        lambda data, name, split: HFDS(name, data.path, split, data.class_order),
        "a name on the Hugging Face Hub or a folder, e.g. hfds:uoft-cs/cifar10",
    ),
    "wds": _built_in(
        lambda data, pattern, split: WebDataset(pattern, data.path, split, data.class_order),
        "a pattern of shards, e.g. wds:{train,val}-*.tar",
    ),
}.items():
    register_source(_kind, _factory)
