"""Published weights: found on this machine, or downloaded, checked, converted and kept."""

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
from aa_flax.weights.content import Content
from aa_flax.weights.convert import check_hash, convert_torch_file
from aa_flax.weights.torch_files import import_torch

# Where the originals' files and torchvision's stand.
ADDRESSES = {
    "original": "https://antialiased-cnns.s3.us-east-2.amazonaws.com/weights_v0.1/",
    "torchvision": "https://download.pytorch.org/models/",
}
_TIMEOUT = 30  # seconds without a byte


def choose(name: str, training: str | None = None) -> ReleasedWeights:
    """The released file for a net.

    Args:
        name: a net's name; `..._finetune` asks for the fine-tuned weights, as the original's does.
        training: `finetuned` or `scratch`; None takes what the original takes: fine-tuned weights
            where there are any (every net at `_lpf4`), else those trained from scratch, and for a
            baseline torchvision's.

    Raises:
        InputError: nothing of that kind was released; the message lists what was.
    """
    base, filter_size = registry.parse_name(name)
    model = base if filter_size is None else f"{base}_lpf{filter_size}"
    found = {r.training: r for r in registry.released_weights() if r.model == model}
    if training is not None:
        wanted = [training]
    elif name.endswith("_finetune"):
        wanted = ["finetuned"]
    else:
        wanted = ["finetuned", "scratch", "baseline"]
    for kind in wanted:
        if kind in found:
            return found[kind]
    kind = f"{training} " if training else ""
    raise InputError(f"no {kind}weights were released for {model}; {_what_there_is(base)}")


def _what_there_is(base: str) -> str:
    there = [r for r in registry.released_weights() if registry.parse_name(r.model)[0] == base]
    return "there are: " + (", ".join(f"{r.model} ({r.training})" for r in there) or "none")


def pretrained_file(released: ReleasedWeights) -> Path:
    """The released weights as safetensors, from wherever they are nearest.

    In turn: a converted file in the folder `AA_FLAX_WEIGHTS`, or in the cache; a released file in
    `AA_FLAX_WEIGHTS`, converted into the cache; the file downloaded, converted into the cache.

    Raises:
        InputError: a file that is not the released one, or a download that fails; the message says
            where to put the file by hand.
    """
    converted = Path(released.filename).with_suffix(".safetensors").name
    local = _local_folder()
    folders = [*([] if local is None else [local]), *_caches()]
    for folder in folders:
        if (folder / converted).is_file():
            return folder / converted
    with _locked(converted) as cached:
        if cached.is_file():  # another process has done the work
            return cached
        if local is not None and (local / released.filename).is_file():
            convert_torch_file(local / released.filename, cached)
        else:
            _download_and_convert(released, cached)
    return cached


def weights_cache() -> Path:
    """Where converted weights are kept."""
    return cache_folder() / "weights"


def _caches() -> list[Path]:
    """The cache, where there can be one."""
    try:
        return [weights_cache()]
    except (OSError, RuntimeError):  # no home folder
        return []


@contextmanager
def _locked(filename: str) -> Iterator[Path]:
    """A file of the cache, for this process alone; a temporary one where nothing can be kept."""
    for folder_of in (weights_cache, _temporary_folder):
        try:
            folder = folder_of()
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / Path(filename).with_suffix(".lock"))
            lock.acquire()
        except (OSError, RuntimeError):  # not writable, without locks, or no home folder
            continue
        try:
            yield folder / filename
        finally:
            lock.release()
        return
    raise InputError(
        "published weights can be kept neither in the cache nor in TMPDIR; make room there"
    )


@cache
def _temporary_folder() -> Path:
    """A folder that goes when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="aa_flax_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _local_folder() -> Path | None:
    """The folder `AA_FLAX_WEIGHTS`, if it is set."""
    given = os.environ.get("AA_FLAX_WEIGHTS")
    if not given:
        return None
    folder = local_path(given, "AA_FLAX_WEIGHTS")
    if not folder.is_dir():
        raise InputError(f"AA_FLAX_WEIGHTS is {given}, which is no folder; correct it or unset it")
    return folder


def check_is_released(released: ReleasedWeights, content: Content) -> None:
    """Raises an InputError if a file converted from a released one says it is of another."""
    origin = content.metadata.get("sha256", "")
    if origin and not origin.startswith(released.sha256_prefix):
        raise InputError(
            f"{content.label} was converted from another file than {released.filename} (SHA-256 "
            f"{origin[:8]}); delete it"
        )


def _download_and_convert(released: ReleasedWeights, cached: Path) -> None:
    import_torch(f"converting {released.filename}")  # before anything is downloaded
    downloaded = cached.parent / released.filename
    try:
        download(released, downloaded)
        convert_torch_file(downloaded, cached)
    finally:
        downloaded.unlink(missing_ok=True)


def address_of(released: ReleasedWeights) -> str:
    """Where a released file is published."""
    site = "torchvision" if released.training == "baseline" else "original"
    return ADDRESSES[site] + released.filename


def download(released: ReleasedWeights, path: Path) -> None:
    """Downloads a released file, whole and with the right hash or not at all.

    Raises:
        InputError: no connection, one that broke off, or another file; it names the address and
            the folder to put the file in.
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
        ) from None  # a chain of urllib's errors would stand before the cause


def _copy(response, path: Path, title: str) -> str:
    """Writes what arrives to a file, and gives its SHA-256."""
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
