"""Gives a command of the documentation to the program it names, as far as the work would begin.

A server imports what the programs import and forks for every command (`forkserver`), so that each
runs in a process of its own and all of them take seconds. There, whatever opens data, connects to
somewhere or has read an `argparse` command line stops instead, and says so.
"""

import argparse
import contextlib
import io
import os
import runpy
import shlex
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

from absl import flags

import aa_flax.cli
import aa_flax.report
import aa_flax.training.train  # noqa: F401 with the above, what the programs take long to import
from aa_flax import InputError
from aa_flax.data.sources import make_source
from aa_flax.runtime import start_distributed

ROOT = Path(__file__).parents[2]
REACHED = "understood"  # the command line is right, and the work would begin
# What benchmarks compare with is not imported: only their flags matter.
_COMPARED = ("torch", "torch.utils", "torch.utils.data", "torchvision", "antialiased_cnns")


def attempt(command: str, folder: Path) -> tuple[str, list[str]]:
    """What `python ...` says in `folder`, and the flags that its program knows."""
    program, *arguments = shlex.split(command.removeprefix("python "))
    run = partial(runpy.run_path, str(ROOT / program), run_name="__main__")
    if program == "-m":
        program, *arguments = arguments
        run = partial(runpy.run_module, program, run_name="__main__", alter_sys=True)
    sys.argv[:] = [program, *arguments]
    sys.path.insert(0, str(ROOT / Path(program).parent))
    os.chdir(folder)
    known = _stop_where_work_begins()
    if program.startswith("benchmarks/"):
        tensor = type("Tensor", (), {})  # SciPy asks whether what it gets is one
        sys.modules.update({name: MagicMock(Tensor=tensor) for name in _COMPARED})
    return _said_by(run), known or [f"--{name}" for name in flags.FLAGS]


def _said_by(run: Callable[[], object]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run()
        except SystemExit as end:
            print(end.code)
    return said.getvalue()


def _stop_where_work_begins() -> list[str]:
    """Returns where the flags of an `argparse` program will stand."""
    known: list[str] = []
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        known.extend(parser._option_string_actions)
        parse_args(parser, *arguments)
        sys.exit(REACHED)

    def stop(*_, **__):
        raise InputError(REACHED)

    argparse.ArgumentParser.parse_args = parse_and_stop
    socket.getaddrinfo = socket.socket.connect = stop
    _replace_everywhere(make_source, stop)
    _replace_everywhere(start_distributed, lambda *_, **__: None)
    return known


def _replace_everywhere(function: Callable, replacement: Callable) -> None:
    """In each module that has imported it."""
    for module in list(sys.modules.values()):
        if vars(module).get(function.__name__) is function:
            setattr(module, function.__name__, replacement)
