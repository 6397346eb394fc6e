# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Sorts ImageNet's flat validation folder into class folders.

    python -m aa_flax.data.imagenet_val VAL DEVKIT OUT

VAL contains ILSVRC2012_val_00000001.JPEG and so on, DEVKIT is the unpacked ILSVRC2012_devkit_t12,
and OUT, usually ILSVRC2012/val, becomes OUT/<WordNet id>/*.JPEG. Images are hard-linked, or where
that is not possible linked symbolically, or copied; VAL stays as it is.
"""

import argparse
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from aa_flax.data.classes import read_names
from aa_flax.errors import InputError, first_line
from aa_flax.files import local_path, replacing
from aa_flax.runtime import progress_bar


def sort_validation(val: Path, devkit: Path, out: Path) -> None:
    """Makes `out` from the images in `val` and their classes in the devkit.

    It appears whole or not at all. A call that was interrupted resumes when it is repeated.

    Raises:
        InputError: there is no devkit; images are missing or too many; `out` is something else.
    """
    targets = _targets(devkit)
    if out.exists():
        found = {str(path.relative_to(out)) for path in out.glob("*/*")}
        if found == set(targets.values()):
            print(f"{out} is complete already")
            return
        raise InputError(f"{out} exists and is not the sorted validation set; remove it first")
    _check_images(val, targets)
    partial = out.with_name(f"{out.name}.incomplete")
    bar = progress_bar(len(targets), f"sorting into {out}", iterable=targets.items())
    for name, target in bar:
        if not (destination := partial / target).exists():
            _place(val.resolve() / name, destination)
    partial.rename(out)
    classes = {target.partition("/")[0] for target in targets.values()}
    print(f"{out}: {len(targets)} images of {len(classes)} classes")


def _targets(devkit: Path) -> dict[str, str]:
    """Returns the target of each image: `ILSVRC2012_val_00000001.JPEG` -> `n01751748/...`.

    The ground truth numbers classes in a separate order; `meta.mat` has their WordNet ids.
    """
    data = devkit / "data"
    truth, meta = data / "ILSVRC2012_validation_ground_truth.txt", data / "meta.mat"
    for path in (truth, meta):
        if not path.is_file():
            raise InputError(
                f"no file {path}; DEVKIT is the folder unpacked from ILSVRC2012_devkit_t12.tar.gz"
            )
    wnids = _wordnet_ids(meta)
    targets = {}
    for i, line in enumerate(read_names(truth), 1):
        name = f"ILSVRC2012_val_{i:08}.JPEG"
        if line not in wnids:
            raise InputError(
                f"{truth}: line {i}, {line!r:.99}, is not a class of {meta}; unpack both"
            )
        targets[name] = f"{wnids[line]}/{name}"
    return targets


def _wordnet_ids(meta: Path) -> dict[str, str]:
    """Returns the WordNet id of each number; they become folders, so nothing else is accepted."""
    try:
        synsets: Any = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        numbers, ids = map(int, synsets["ILSVRC2012_ID"].tolist()), synsets["WNID"].tolist()
        wnids = dict(zip(map(str, numbers), map(str, ids), strict=True))
    except Exception as error:  # of many types, from SciPy and NumPy
        raise InputError(
            f"cannot read the synsets of {meta} ({first_line(error)}); unpack the devkit again"
        ) from error
    for wnid in wnids.values():
        if not re.fullmatch(r"n[0-9]{8}", wnid):
            raise InputError(f"{meta}: {wnid!r:.99} is not a WordNet id; unpack the devkit again")
    return wnids


def _check_images(val: Path, targets: dict[str, str]) -> None:
    if not val.is_dir():
        raise InputError(f"no folder {val}")
    found = {name for name in os.listdir(val) if name.endswith(".JPEG")}
    missing, unknown = sorted(targets.keys() - found), sorted(found - targets.keys())
    if missing or unknown:
        example = (missing or unknown)[0]
        raise InputError(
            f"{val} does not contain the {len(targets)} images of the devkit: {len(missing)} "
            f"missing, {len(unknown)} unknown, such as {example}; unpack ILSVRC2012_img_val.tar "
            "again"
        )


def _place(image: Path, destination: Path) -> None:
    """Links an image hard or symbolically, or copies it, whichever the file system allows."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    for link in (os.link, os.symlink):
        with suppress(OSError):
            link(image, destination)
            return
    with replacing(destination) as temporary:
        shutil.copyfile(image, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aa_flax.data.imagenet_val",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("val", "devkit", "out"):
        parser.add_argument(name, metavar=name.upper())
    args = vars(parser.parse_args())
    try:
        sort_validation(*(local_path(args[name], name.upper()) for name in args))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
