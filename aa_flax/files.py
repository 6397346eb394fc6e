"""Where this package keeps files of its own, and files that appear whole or not at all."""

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

import platformdirs

from aa_flax.errors import InputError


def cache_folder() -> Path:
    """`aa_flax` in `$XDG_CACHE_HOME`, or in the user's cache folder, e.g. `~/.cache`.

    It may not be there yet, nor be writable. A user without a home has one in the temporary folder.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir())
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd
        base = Path()
    return (base if base.is_absolute() else _folder_without_home()) / "aa_flax"


@cache
def _folder_without_home() -> Path:
    """A folder in the temporary one that is this user's alone: what is cached is trusted."""
    folder = Path(tempfile.gettempdir()) / f"aa_flax_{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_dir() and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="aa_flax_"))


def local_path(path: str | Path, what: str) -> Path:
    """A path as a user gives it, `~` being the home folder.

    Args:
        what: which path it is, for the error, e.g. `--workdir`.

    Raises:
        InputError: an address such as `gs://bucket/run`, which would become a local folder `gs:`;
            or what can be no path, its name too long, say.
    """
    text = str(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}", text)
    if scheme:
        raise InputError(
            f"{what} {text} is an address ({scheme[1]}), not a path on this machine; mount or "
            "copy it here, and give the local path"
        )
    try:
        path = Path(text).expanduser()
        os.path.lexists(path)  # which refuses a NUL
        path.exists()  # and this a name that is too long
    except RuntimeError as error:
        raise InputError(f"{what} {text}: {error}; give the path without ~") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} {text!r:.99}: {reason}; give another path") from error
    return path


def read_file(path: str | Path) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
        OSError: it cannot be read; or it is a pipe or a device, which might be waited for forever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is a pipe, a device or a folder, not a file")
    with open(path, "rb") as file:
        return file.read()


def check_writable(path: Path) -> None:
    """Raises an InputError if a file cannot be written there: a folder or device is, or no way to.

    Folders that are missing on the way will be made.
    """
    if path.is_dir():
        raise InputError(f"the output {path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"the output {path} is a device or a pipe; give the name of a file")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"the output {path} cannot be written: no writing in {there}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write to, and puts it in its place at the end.

    If anything fails, `path` stays as it was and the temporary file goes. Several processes may
    write the same path at once: the last one stays.

    Raises:
        InputError: a device or pipe is there, which a file must not take the place of.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a device or a pipe, which nothing is written to; give a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    # The mode that open() gives a new file, which the kernel masks; mkstemp's would be 0600.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def not_written(path: Path, error: Exception) -> InputError:
    """The error of a file that cannot be written, with its cause."""
    cause = getattr(error, "strerror", None) or error
    return InputError(f"{path} cannot be written: {cause}; make room there or give another path")


def parse_json(text: str | bytes) -> Any:
    """Returns `json.loads(text)`, with one kind of error for all that is no JSON.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
