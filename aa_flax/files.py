"""Paths that users give, the cache folder, files written completely or not at all, and errors."""

import errno
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

from aa_flax.errors import InputError, cause

# A missing file, or an impossible name, is damage. Any other error of the operating system
# (permission, descriptors, memory, the device) says nothing about the content.
_OF_DAMAGE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP),
}
# Tensorstore raises a ValueError with the system's error in its text.
_STATUS = re.compile(r"(PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED):")
_CODE = re.compile(r"os_error_code='(\d+)'")


def cache_folder() -> Path:
    """Returns `aa_flax` in `$XDG_CACHE_HOME`, or in the user's cache folder, e.g. `~/.cache`.

    It need not exist, nor be writable. Without a home folder it is in the temporary folder.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir())
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd
        base = Path()
    return (base if base.is_absolute() else _folder_without_home()) / "aa_flax"


@cache
def _folder_without_home() -> Path:
    """Returns a temporary folder that only this user can write to, since the cache is trusted."""
    folder = Path(tempfile.gettempdir()) / f"aa_flax_{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_dir() and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="aa_flax_"))


def local_path(path: str | Path, what: str) -> Path:
    """Returns a path as a user gives it, with `~` for the home folder.

    Args:
        what: names the path in the error, e.g. `--workdir`.

    Raises:
        InputError: an address such as `gs://bucket/run`, which would become a local folder `gs:`;
            or an impossible path, e.g. with a name that is too long.
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
        raise InputError(f"{what} {text!r:.99}: {cause(error)}; give another path") from error
    return path


def read_file(path: str | Path) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
        OSError: it cannot be read; or it is a pipe or a device, which could block forever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is a pipe, a device or a folder, not a file")
    with open(path, "rb") as file:
        return file.read()


def check_writable(path: Path, *, room: bool = False) -> None:
    """Raises an InputError if a file cannot be written at a path.

    Missing directories are made when it is; with `room` now, and 64 KiB are written there for a
    moment, since a full disk may still have room for a name.
    """
    if path.is_dir():
        raise InputError(f"the output {path} is a directory; give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"the output {path} is a device or a pipe; give the name of a file")
    check_directory(path.parent, f"the output {path}")
    if room:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:
                file.write(bytes(2**16))
                file.flush()
                os.fsync(file.fileno())


def check_directory(path: Path, what: str) -> None:
    """Raises an InputError, about `what`, if a directory can be neither written to nor made."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"{what}: {there} is a file, but a directory is needed; give another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} cannot be written: no permission in {there}; give another path")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file next to `path`, which replaces `path` at the end.

    On an error `path` is unchanged and the temporary file is removed. Several processes may write
    the same path at once: the last one wins.

    Raises:
        InputError: `path` is a device or a pipe, which must not be replaced.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a device or a pipe; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    # The mode that open() gives a new file, which the kernel masks; mkstemp's would be 0600.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, advice: str = "make room there or give another path") -> Iterator[None]:
    """Turns an error of writing a file, such as a full disk, into an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error, advice) from error


def not_written(
    path: Path, error: Exception, advice: str = "make room there or give another path"
) -> InputError:
    """Returns the error of a file that could not be written, with its cause."""
    return InputError(f"{path} cannot be written: {cause(error)}; {advice}")


def parse_json(text: str | bytes) -> Any:
    """Returns `json.loads(text)`; raises a ValueError also where that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_out_of_reach(error: BaseException) -> bool:
    """Checks if a file could not be read now, so that nothing is known of its content."""
    error = _root(error)
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_DAMAGE
    codes = {int(code) for code in _CODE.findall(str(error))}
    return isinstance(error, MemoryError) or bool(_STATUS.match(str(error)) or codes - _OF_DAMAGE)


def root_cause(error: BaseException) -> str:
    """Returns the cause of an error, on one line."""
    error = _root(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _root(error: BaseException) -> BaseException:
    """Returns the first of a chain of errors: Orbax wraps errors in others, and quotes much."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
