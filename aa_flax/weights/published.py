"""Published weights: found on this machine, or downloaded, checked, converted and cached."""

import atexit
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from aa_flax.errors import InputError
from aa_flax.files import cache_folder, local_path, replacing
from aa_flax.models import registry
from aa_flax.models.registry import ReleasedWeights
from aa_flax.runtime import progress_bar
from aa_flax.weights.convert_files import check_hash, convert_file
from aa_flax.weights.read import import_torch

# Of the original's files, and torchvision's.
ADDRESSES = {
    "original": "https://antialiased-cnns.s3.us-east-2.amazonaws.com/weights_v0.1/",
    "torchvision": "https://download.pytorch.org/models/",
}
_TIMEOUT = 30  # seconds without a byte


def choose(name: str, training: str | None = None) -> ReleasedWeights:
    """Returns the released file for a model.

    Args:
        name: a model's name; `..._finetune` requests the fine-tuned weights, as the original's
            does.
        training: `finetuned` or `scratch`; None chooses as the original does: fine-tuned weights
            where there are any (every model at `_lpf4`), else those trained from scratch, and
            torchvision's for a baseline.

    Raises:
        InputError: nothing of that kind was released; the message lists what was.
    """
    base, filter_size = registry.parse_name(name)
    model = base if filter_size is None else f"{base}_lpf{filter_size}"
    wanted = ["finetuned", "scratch", "baseline"]
    if training is not None or name.endswith("_finetune"):
        wanted = [training or "finetuned"]
    released = registry.released_weights()
    found = {r.training: r for r in released if r.model == model and r.training in wanted}
    if found:
        return found[min(found, key=wanted.index)]
    there = [r for r in released if registry.parse_name(r.model)[0] == base]
    listed = ", ".join(f"{r.model} ({r.training})" for r in there) or "none"
    kind = f"{training} " if training else ""
    raise InputError(f"no {kind}weights were released for {model}; there are: {listed}")


def published_file(released: ReleasedWeights) -> Path:
    """Returns released weights as a safetensors file.

    The first of these is used: a converted file in the folder `AA_FLAX_WEIGHTS`, or in the cache;
    a released file in `AA_FLAX_WEIGHTS`, converted into the cache; a download, converted into the
    cache.
    """
    converted = Path(released.filename).with_suffix(".safetensors").name
    local = _local_folder()
    for folder in (local, _cache()):
        if folder is not None and (folder / converted).is_file():
            return folder / converted
    with _locked(converted) as cached:
        if cached.is_file():  # another process has converted it meanwhile
            return cached
        if local is not None and (local / released.filename).is_file():
            convert_file(local / released.filename, cached)
            return cached
        import_torch(f"converting {released.filename}")  # before anything is downloaded
        downloaded = cached.parent / released.filename
        try:
            download(released, downloaded)
            convert_file(downloaded, cached)
        finally:
            downloaded.unlink(missing_ok=True)
    return cached


def _local_folder() -> Path | None:
    given = os.environ.get("AA_FLAX_WEIGHTS")
    if not given:
        return None
    folder = local_path(given, "AA_FLAX_WEIGHTS")
    if not folder.is_dir():
        raise InputError(
            f"AA_FLAX_WEIGHTS is {given}, which is not a directory; correct it or unset it"
        )
    return folder


def _cache() -> Path:
    return cache_folder() / "weights"


@contextmanager
def _locked(filename: str) -> Iterator[Path]:
    """Locks a file of the cache for this process; a temporary one where nothing can be cached."""
    for folder_of in (_cache, _temporary_folder):
        try:
            folder = folder_of()
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / Path(filename).with_suffix(".lock"))
            lock.acquire()
        except (OSError, NotImplementedError):  # not writable, or without locks
            continue
        try:
            yield folder / filename
        finally:
            lock.release()
        return
    raise InputError(
        "published weights can be stored neither in the cache nor in TMPDIR; make room there"
    )


@cache
def _temporary_folder() -> Path:
    """Makes a folder that is removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="aa_flax_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def address_of(released: ReleasedWeights) -> str:
    """Returns the address where a released file is published."""
    site = "torchvision" if released.training == "baseline" else "original"
    return ADDRESSES[site] + released.filename


def download(released: ReleasedWeights, path: Path) -> None:
    """Downloads a released file, complete and with the right hash or not at all.

    The InputError of a failure has the address, and the folder to put the file in.

    Raises:
        InputError: no connection, one that broke off, or another file; the message has the address
            and the folder to put the file in.
    """
    address = address_of(released)
    try:
        with (
            urllib.request.urlopen(address, timeout=_TIMEOUT) as response,
            replacing(path) as temporary,
        ):
            check_hash(released, _copy(response, temporary, released.filename), path)
    except (urllib.error.URLError, HTTPException, OSError, InputError) as error:
        reason = getattr(error, "reason", None)
        cause = f"no connection ({reason})" if isinstance(reason, OSError) else error
        raise InputError(
            f"{cause}: {address} could not be downloaded. Download it by other means, put it in a "
            f"folder, and give that folder: AA_FLAX_WEIGHTS=FOLDER (converted weights are kept in "
            f"{path.parent})"
        ) from None  # urllib's chain of errors would be printed before the cause


def _copy(response, path: Path, title: str) -> str:
    """Writes a response to a file, and returns its SHA-256."""
    size = int(response.headers.get("Content-Length") or 0)
    digest = hashlib.sha256()
    with path.open("wb") as file, progress_bar(size or None, title, "B", unit_scale=True) as bar:
        while chunk := response.read(1 << 20):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
    received = path.stat().st_size
    if size and received != size:
        raise InputError(f"the connection ended after {received} of {size} bytes")
    return digest.hexdigest()
