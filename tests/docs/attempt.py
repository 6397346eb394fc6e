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
from pathlib import Path
from unittest.mock import MagicMock

import aa_flax.commands
import aa_flax.evaluation.report
import aa_flax.training.loop  # noqa: F401  with the above, what a program takes long to import
from aa_flax import InputError
from aa_flax.data import sources

ROOT = Path(__file__).parents[2]
REACHED = "understood"  # the command line is right, and the work would begin
# What benchmarks compare with is not imported: only their flags matter.
_COMPARED = ("torch", "torch.utils", "torch.utils.data", "torchvision", "antialiased_cnns")


def attempt(command: str, folder: Path) -> tuple[str, list[str]]:
    """What `python ...` says in `folder`, and the flags that its program knows."""
    program, *arguments = shlex.split(command.removeprefix("python "))
    sys.argv[:] = [program, *arguments]
    if program == "-m":
        module, *sys.argv[1:] = arguments
        sys.argv[:] = [module, *arguments[1:]]
    os.chdir(folder)
    sys.path.insert(0, str(ROOT / Path(program).parent))
    known: list[str] = []
    _stop_before_the_work(known)
    if program.startswith("benchmarks/"):
        tensor = type("Tensor", (), {})  # SciPy asks whether what it gets is one
        sys.modules.update({name: MagicMock(Tensor=tensor) for name in _COMPARED})
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if program == "-m":
                runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as end:
            print(end.code)
    return said.getvalue(), known or _absl_flags()


def _absl_flags() -> list[str]:
    from absl import flags

    return [f"--{name}" for name in flags.FLAGS]


def _stop_before_the_work(known: list[str]) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *args):
        known.extend(parser._option_string_actions)
        parse_args(parser, *args)
        sys.exit(REACHED)

    def stop(*_, **__):
        raise InputError(REACHED)

    argparse.ArgumentParser.parse_args = parse_and_stop
    socket.getaddrinfo = socket.socket.connect = stop
    for name, original in [
        ("make_source", sources.make_source),
        ("start_distributed", aa_flax.commands.start_distributed),
    ]:
        replacement = stop if name == "make_source" else lambda *_: None
        for module in list(sys.modules.values()):
            if vars(module).get(name) is original:
                setattr(module, name, replacement)
