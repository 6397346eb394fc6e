"""Published weights: found on this machine, or downloaded, checked, converted and kept."""

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from aa_flax.disk import cache_folder, replacing
from aa_flax.errors import InputError
from aa_flax.models import registry
from aa_flax.models.registry import ReleasedWeights
from aa_flax.weights.convert import check_hash, convert_torch_file, sha256

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
    return "there are: " + ", ".join(f"{r.model} ({r.training})" for r in there)


def pretrained_file(released: ReleasedWeights) -> Path:
    """The released weights as safetensors, from wherever they are nearest.

    In turn: a converted file in the folder `AA_FLAX_WEIGHTS`, or in the cache; a released file in
    `AA_FLAX_WEIGHTS`, converted into the cache; the file downloaded, converted into the cache.

    Raises:
        InputError: a file that is not the released one, or a download that fails; the message says
            where to put the file by hand.
    """
    converted = Path(released.filename).with_suffix(".safetensors").name
    cached = weights_cache() / converted
    local = _local_folder()
    for path in ([] if local is None else [local / converted]) + [cached]:
        if path.is_file():
            return path
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):  # one of several processes does the work
        if cached.is_file():
            return cached
        if local is not None and (local / released.filename).is_file():
            convert_torch_file(local / released.filename, cached)
        else:
            _download_and_convert(released, cached)
    return cached


def weights_cache() -> Path:
    """Where converted weights are kept."""
    return cache_folder() / "weights"


def _local_folder() -> Path | None:
    """The folder `AA_FLAX_WEIGHTS`, if it is set."""
    given = os.environ.get("AA_FLAX_WEIGHTS")
    if not given:
        return None
    if not Path(given).is_dir():
        raise InputError(f"AA_FLAX_WEIGHTS is {given}, which is no folder; correct it or unset it")
    return Path(given)


def _download_and_convert(released: ReleasedWeights, cached: Path) -> None:
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
            _copy_with_progress(response, temporary, released.filename)
            check_hash(released, sha256(temporary), path)
    except (urllib.error.URLError, HTTPException, OSError, InputError) as error:
        raise InputError(
            f"{address} could not be downloaded: {error}. Download it by other means, put it in a "
            f"folder, and give that folder: AA_FLAX_WEIGHTS=FOLDER (converted weights are kept in "
            f"{weights_cache()})"
        ) from error


def _copy_with_progress(response, path: Path, title: str) -> None:
    size = int(response.headers.get("Content-Length") or 0)
    with (
        path.open("wb") as file,
        tqdm(total=size or None, desc=title, unit="B", unit_scale=True, leave=False) as bar,
    ):
        while chunk := response.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))
    received = path.stat().st_size
    if size and received != size:
        raise InputError(f"the connection ended after {received} of {size} bytes")
