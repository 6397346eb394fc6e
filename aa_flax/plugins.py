"""Plug-ins: Python files of the user's that add nets, pools, measures or sources to a command."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aa_flax.errors import InputError
from aa_flax.files import local_path


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Imports what `--plugin FILE_OR_MODULE[,...]` names, before the other flags are parsed.

    A file is imported by its stem, its folder put on `sys.path`, so that processes which a command
    starts find it again. What is imported already is left as it is.

    Args:
        argv: a command's arguments; those that are not `--plugin` are left alone.

    Returns:
        Names of the modules.

    Raises:
        InputError: no such file or module, or a file with the name of another module.
    """
    return [_load(name) for value in _values(argv) for name in value.split(",") if name]


def _values(argv: Sequence[str]) -> Iterator[str]:
    arguments = iter(argv)
    for argument in arguments:
        flag, given, value = argument.partition("=")
        if argument == "--":
            return
        if flag in ("--plugin", "-plugin"):
            yield value if given else next(arguments, "")


def _load(name: str) -> str:
    path = local_path(name, "--plugin")
    if path.suffix != ".py" and not path.is_file():
        return _import_module(name)
    if not path.is_file():
        raise InputError(f"no file {path} (--plugin); give a Python file, or a module's name")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found = importlib.import_module(path.stem).__file__
    if found is None or Path(found).resolve() != path.resolve():
        raise InputError(
            f"--plugin {path} has the name of another module ({found or path.stem}); rename it"
        )
    return path.stem


def _import_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports is not
        raise InputError(
            f"no module or file {name} (--plugin); a file's name ends in .py, a module is found "
            "where Python looks"
        ) from error
    return name
