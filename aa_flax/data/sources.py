"""Where images come from: random access, one image a call; and the open table of such sources."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aa_flax.config import DataConfig
from aa_flax.data.classes import check_classes_agree, named_twice
from aa_flax.data.digits import Digits
from aa_flax.data.folder import ImageFolder
from aa_flax.data.hfds import HFDS
from aa_flax.data.images import Example
from aa_flax.data.tfds import TFDS
from aa_flax.data.webdataset import WebDataset
from aa_flax.errors import InputError, Table


class Source(Protocol):
    """Random access to labelled images.

    Threads read from it at once; with `worker_type=process` it is pickled for each process. It may
    have a method `digest() -> str`, a hash of its classes, images and labels: a run that is
    continued then notices other data.

    Attributes:
        num_classes: labels are `0 .. num_classes - 1`.
        class_names: of every class, e.g. its folder's; each once, the same for both splits.
    """

    num_classes: int

    @property
    def class_names(self) -> Sequence[str]: ...

    def name(self, index: int) -> str:
        """What to call an image, e.g. its path."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """`image`, a PIL image in mode RGB or uint8 `(H, W, 3)`, and `label`, an integer.

        Raises:
            ImageError: (`aa_flax.data.images`) an image that cannot be read; any other exception
                ends the run, also with `config.data.on_error` "skip".
        """
        ...


# Makes the source of a split, "train" or "val", from `config.data`.
Factory = Callable[[DataConfig, str], Source]

_SOURCES: Table[Factory] = Table("data source (config.data.name)")


def register_source(kind: str, factory: Factory, *, replace: bool = False) -> None:
    """Adds a kind of data: `--config.data.name=KIND`, or `KIND:` and anything the factory reads.

    Args:
        kind: what stands before the first colon of `config.data.name`.
        factory: called with `config.data`, of which `name` and `path` are for it to use, and the
            split, `train` or `val`.
        replace: take the place of a kind that is there.

    Raises:
        InputError: there is such a kind already, or the name is empty or has a colon.
    """
    if not kind or ":" in kind:
        raise InputError(f"a kind of data source is named without a colon, got {kind!r}")
    _SOURCES.register(kind, factory, replace=replace)


def make_source(data: DataConfig, split: str) -> Source:
    """The source that `config.data` names.

    Args:
        data: `name` is a registered kind, with or without `:` and what it is to read: `digits`,
            `folder`, `tfds:NAME`, `hfds:NAME`, `wds:PATTERN` or one that `register_source` added;
            `path`, where that is.
        split: `train` or `val`.

    Raises:
        InputError: an unknown source, or one that cannot be read; the message says why.
    """
    if split not in ("train", "val"):
        raise InputError(f"the splits of a data set are train and val, got {split!r}")
    kind, _, _ = data.name.partition(":")
    source = _SOURCES[kind](data, split)
    check_source(source, f"the source of config.data.name {data.name!r}")
    return source


def make_sources(data: DataConfig) -> dict[str, Source]:
    """Makes the sources for `train` and `val`, in which a label means the same class.

    Raises:
        InputError: see `make_source`; or the two name or order their classes differently.
    """
    sources = {split: make_source(data, split) for split in ("train", "val")}
    names = {f"{split} of {data.name}": source.class_names for split, source in sources.items()}
    check_classes_agree(names)
    return sources


def check_source(source: Any, what: str) -> None:
    """Checks a source that anyone may have written; its images are checked as they are read.

    Args:
        what: names the source, for the error.

    Raises:
        InputError: it lacks members or images, or its classes are not as many as their names, or
            two have one name.
    """
    needed = ("num_classes", "class_names", "name", "__len__", "__getitem__")
    missing = [one for one in needed if not hasattr(source, one)]
    if missing:
        raise InputError(f"{what} has no {', '.join(missing)}; see aa_flax.data.sources.Source")
    if len(source.class_names) != source.num_classes:
        raise InputError(
            f"{what} has num_classes {source.num_classes}, but {len(source.class_names)} "
            "class_names; give each class a name"
        )
    if repeated := named_twice(source.class_names):
        name, first, second = repeated
        raise InputError(
            f"{what} calls both class {first} and class {second} {name}; give each class its own "
            "name"
        )
    if not len(source):
        raise InputError(f"{what} has no images")


def _after_colon(data: DataConfig, what: str) -> str:
    """What is to be read by a kind that needs to know."""
    _, _, name = data.name.partition(":")
    if not name:
        raise InputError(f"config.data.name {data.name!r} lacks {what}")
    return name


def _alone(data: DataConfig) -> None:
    kind, colon, name = data.name.partition(":")
    if colon:
        raise InputError(
            f"config.data.name {data.name!r}: {kind} stands alone, without {name!r}; where images "
            "are is said by --config.data.path"
        )


def _digits(data: DataConfig, split: str) -> Source:
    _alone(data)
    return Digits(split, data.image_size)


def _folder(data: DataConfig, split: str) -> Source:
    _alone(data)
    return ImageFolder(data.path, split, data.class_order)


def _tfds(data: DataConfig, split: str) -> Source:
    name = _after_colon(data, "the name of a TFDS data set, e.g. tfds:imagenet2012")
    return TFDS(name, data.path, split, data.class_order)


def _hfds(data: DataConfig, split: str) -> Source:
    name = _after_colon(
        data, "a name on the Hugging Face Hub or a folder, e.g. hfds:uoft-cs/cifar10"
    )
    return HFDS(name, data.path, split, data.class_order)


def _wds(data: DataConfig, split: str) -> Source:
    pattern = _after_colon(data, "a pattern of shards, e.g. wds:{train,val}-*.tar")
    return WebDataset(pattern, data.path, split, data.class_order)


register_source("digits", _digits)
register_source("folder", _folder)
register_source("tfds", _tfds)
register_source("hfds", _hfds)
register_source("wds", _wds)
