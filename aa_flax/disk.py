"""Where this package keeps files of its own, and files that appear whole or not at all."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aa_flax.errors import InputError


def cache_folder() -> Path:
    """`aa_flax` in `$XDG_CACHE_HOME` or `~/.cache`; it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aa_flax"


def local_path(path: str | Path, what: str) -> Path:
    """A path as a user gives it, `~` being the home folder.

    Args:
        what: which path it is, for the error, e.g. `--workdir`.

    Raises:
        InputError: an address such as `gs://bucket/run`, which would become a local folder `gs:`.
    """
    text = str(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}", text)
    if scheme:
        raise InputError(
            f"{what} {text} is an address ({scheme[1]}), not a folder of this machine; mount or "
            "copy it here, and give the local path"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what} {text}: {error}; give the path without ~") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write to, and puts it in its place at the end.

    If anything fails, `path` stays as it was and the temporary file goes. Several processes may
    write the same path at once: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
