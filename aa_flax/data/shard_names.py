"""Which files a pattern of shards names, and which of them are for training."""

import os
import re
from collections.abc import Iterator, Sequence
from glob import escape, glob
from pathlib import Path

from aa_flax.data.natural import natural_key
from aa_flax.errors import InputError

# Words in the name of a shard or of its folder. A test set is validation where there is no other.
_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def find_shards(pattern: str, root: Path) -> dict[str, list[Path]]:
    """The shards for `train` and `val`, in order.

    Args:
        pattern: a path with `*`, `?`, `[..]`, alternatives `{a,b}` and ranges `{0000..0146}`; or a
            folder, for all `*.tar` in it and below. The words train, val, validation and test in a
            shard's name, or else in its folders' below `root`, say what it is for.
        root: the folder it is relative to; of an absolute path the last folder counts.

    Raises:
        InputError: nothing fits the pattern, a shard of a range is missing, or one does not say
            what it is for.
    """
    if os.path.isdir(root / pattern):
        expanded = [f"{escape(pattern)}/**/*.tar"]
    else:
        expanded = dict.fromkeys(expand(pattern))
    paths = dict.fromkeys(path for one in expanded for path in _files(one, root))
    by_word: dict[str, list[Path]] = {}
    for path in paths:
        by_word.setdefault(_word(path, root), []).append(path)
    if "val" not in by_word and "test" in by_word:
        by_word["val"] = by_word["test"]
    return {split: by_word.get(split, []) for split in ("train", "val")}


def expand(pattern: str) -> Iterator[str]:
    """What a shell makes of braces: `{a,b}` and `{08..11}`, with as many zeros, also nested."""
    match = re.search(r"\{([^{}]*)\}", pattern)  # an innermost pair
    if not match:
        yield pattern
        return
    inner = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        parts: Sequence[str] = [f"{i:0{width}}" for i in range(first, last + 1)]
    else:
        parts = inner.split(",")
    for part in parts:
        yield from expand(pattern[: match.start()] + part + pattern[match.end() :])


def _files(pattern: str, root: Path) -> list[Path]:
    """One file, which must be there; or all that fit, in natural order."""
    if not re.search(r"[*?\[]", pattern):
        path = root / pattern
        if not os.path.isfile(path):
            raise InputError(f"no shard {path} (config.data.name); give a pattern of those there")
        return [path]
    found = glob(os.path.join(escape(os.fspath(root)), pattern), recursive=True)
    if not found:
        raise InputError(f"no shards {root / pattern} (config.data.name)")
    return [Path(one) for one in sorted(found, key=natural_key)]


def _word(path: Path, root: Path) -> str:
    below = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-2:]
    for part in reversed(below):
        found = {_WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in _WORDS}
        if len(found) == 1:
            return found.pop()
    raise InputError(
        f"the shard {path} does not say what it is for; its name or a folder's has to hold train, "
        "val, validation or test"
    )
