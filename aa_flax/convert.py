# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Converts weights between PyTorch's files and safetensors.

    python -m aa_flax.convert IN OUT.safetensors [--model NAME]
    python -m aa_flax.convert --to-torch IN OUT.pth [--model NAME]
    python -m aa_flax.convert [--to-torch] WORKDIR OUT [--step N]
    python -m aa_flax.convert --all FOLDER OUT_FOLDER

IN: a released file, one of torchvision's, a training checkpoint, or safetensors, told apart by
content; IN#ema takes the averaged weights in it. Or `pretrained`, `finetuned`, `scratch` or
`baseline`, the net's published ones. The net follows from the file where it can; else give --model.
--option NAME=VALUE: of its net, e.g. pool_only=False or pool=NAME, where the file does not say it.
WORKDIR: the folder of a training run; its best checkpoint is taken, or that of a step.
--all converts every released file that stands in FOLDER. --plugin FILE_OR_MODULE,... adds nets.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aa_flax.cli import as_called, called, check_platform
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.weights.convert import (
    check_output,
    convert_torch_file,
    net_of,
    save_as_torch,
    write_as_torch,
)
from aa_flax.weights.files import save_weights
from aa_flax.weights.locate import WORDS, OfRun, Weights, describe, locate
from aa_flax.weights.released import convert_folder, table_of


def main() -> None:
    """The command; see the top of this file."""
    try:
        sys.exit(convert(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")


def convert(arguments: Sequence[str]) -> int:
    """What the command's arguments ask for.

    Returns:
        1 if a file of a folder could not be converted, else 0.

    Raises:
        InputError: what cannot be read, converted or written, and why.
    """
    args = _parser().parse_args(arguments)
    check_platform()
    if args.plugin:
        from aa_flax.cli import load_plugins

        load_plugins(arguments)
    options = dict(map(option, args.option))
    if args.all:
        if options or args.model or args.step is not None:
            raise InputError("--all takes released files alone: without --model, --option, --step")
        outcomes = convert_folder(args.source, args.output)
        print(table_of(outcomes))
        return int(any(outcome.failed for outcome in outcomes))
    print(f"{_convert_one(args, options)}: written to {args.output}")
    return 0


def _convert_one(args: argparse.Namespace, options: dict[str, Any]) -> str:
    """Returns the name of the net."""
    weights = published_or_of_a_run(args.source, args.model, args.step)
    if weights is not None:
        if options:
            raise InputError(f"--option is of a file's net; {args.source} says its own")
        return _export(weights, args.output, to_torch=args.to_torch)
    write = write_as_torch if args.to_torch else convert_torch_file
    return write(args.source, args.output, args.model, **options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(),
        description=as_called(str(__doc__), "aa_flax.convert"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("output", metavar="OUT")
    add_arguments_of_weights(parser)
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--to-torch", action="store_true", help="write a torch file")
    direction.add_argument("--all", action="store_true", help="a folder of released files")
    return parser


def add_arguments_of_weights(parser: argparse.ArgumentParser) -> None:
    """The flags that say which net weights are of, and where nets are defined."""
    parser.add_argument("--model", help="the net's name, e.g. resnet50_lpf4")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the net, e.g. pool_only=False; may be given several times",
    )
    parser.add_argument("--step", type=int, help="of a run's checkpoint; default: the best")
    parser.add_argument("--plugin", help="Python files or modules that add nets, comma between")


def option(given: str) -> tuple[str, Any]:
    """A net's option as commands take it: NAME=VALUE, a Python literal or else a word.

    Raises:
        InputError: something else.
    """
    name, equals, value = given.partition("=")
    if not (name.isidentifier() and equals):
        raise InputError(f"--option is NAME=VALUE, e.g. pool_only=False; got {given!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def published_or_of_a_run(source: str, model: str | None, step: int | None) -> Weights | None:
    """Published weights, or those of a run's folder; None: the source is a file.

    Raises:
        InputError: published weights of no net, a run of another net, or a step of a file.
    """
    if source in WORDS:
        if model is None:
            raise InputError(f"{source}: of which net? Give --model NAME, e.g. resnet50_lpf4")
        return locate(source, model=model)
    if local_path(source, "the source").is_dir():
        run = OfRun(source, step)
        if model not in (None, run.name):
            raise InputError(f"the run in {source} trained {run.name}, not {model}")
        return run
    if step is not None:
        raise InputError(f"--step is of a run's folder, and {source} is none")
    return None


def _export(weights: Weights, output: str, *, to_torch: bool) -> str:
    """Writes published weights, or those of a run's checkpoint, without the optimizer's state."""
    path = check_output(output, to_torch=to_torch)
    description = weights.description()
    net = net_of(weights.hold({}))
    net.config = replace(net.config, **weights.config_changes())
    if to_torch:
        save_as_torch(net, path)
    else:
        told = {
            key: str(description[key])
            for key in ("training", "licence", "epoch", "step")
            if key in description
        }
        save_weights(net, path, source=describe(description), **told)
    return f"{net.name} of {describe(description)}"


if __name__ == "__main__":
    main()
