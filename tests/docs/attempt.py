"""Runs a command of the documentation until its work would start.

A server imports the programs' modules and forks for every command (`forkserver`), so that each runs
in a separate process, and all of them take seconds. There, a program that opens data, connects to a
server or has parsed an `argparse` command line stops and reports it.
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
import aa_flax.training.train  # noqa: F401 with the above, slow imports of the programs
from aa_flax import InputError
from aa_flax.data.sources import make_source
from aa_flax.runtime import start_distributed

ROOT = Path(__file__).parents[2]
REACHED = "understood"  # the command line is valid, and the work would start
# References of benchmarks, which are not imported, since only flags matter.
_COMPARED = ("torch", "torch.utils", "torch.utils.data", "torchvision", "antialiased_cnns")


def attempt(command: str, folder: Path) -> tuple[str, list[str]]:
    """Returns the output of `python ...` in `folder`, and the flags of its program."""
    program, *arguments = shlex.split(command.removeprefix("python "))
    run = partial(runpy.run_path, str(ROOT / program), run_name="__main__")
    if program == "-m":
        program, *arguments = arguments
        run = partial(runpy.run_module, program, run_name="__main__", alter_sys=True)
    sys.argv[:] = [program, *arguments]
    sys.path.insert(0, str(ROOT / Path(program).parent))
    os.chdir(folder)
    known = _stop_before_work()
    if program.startswith("benchmarks/"):
        tensor = type("Tensor", (), {})  # SciPy checks whether its arguments are one
        sys.modules.update({name: MagicMock(Tensor=tensor) for name in _COMPARED})
    return _output_of(run), known or [f"--{name}" for name in flags.FLAGS]


def _output_of(run: Callable[[], object]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            run()
        except SystemExit as end:
            print(end.code)
    return output.getvalue()


def _stop_before_work() -> list[str]:
    """Returns a list that the flags of an `argparse` program will be added to."""
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
    """Replaces a function in each module that has imported it."""
    for module in list(sys.modules.values()):
        if vars(module).get(function.__name__) is function:
            setattr(module, function.__name__, replacement)
