# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Converts weights between PyTorch's files and safetensors.

    python -m aa_flax.convert IN OUT.safetensors [--model NAME]
    python -m aa_flax.convert --to-torch IN OUT.pth [--model NAME]
    python -m aa_flax.convert [--to-torch] WORKDIR OUT [--step N]
    python -m aa_flax.convert --all FOLDER OUT_FOLDER

IN: a released file, one of torchvision's, a training checkpoint, or safetensors, recognized by
content; IN#ema uses the averaged weights in it. Or `pretrained`, `finetuned`, `scratch` or
`baseline`, the model's published ones. The model follows from the file if possible; else give
--model. --option NAME=VALUE: of its model, e.g. pool_only=False or pool=NAME, where the file does
not say it.
WORKDIR: the folder of a training run; its best checkpoint is used, or that of a step.
--all converts every released file in FOLDER. --plugin FILE_OR_MODULE,... adds models.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aa_flax.cli import as_called, called, check_platform, load_plugins
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.weights import convert_files
from aa_flax.weights.locate import WORDS, OfRun, WeightsSource, describe, locate
from aa_flax.weights.save_load import save_weights


def main() -> None:
    """Runs the command; see the top of this file."""
    try:
        sys.exit(convert(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")


def convert(arguments: Sequence[str]) -> int:
    """Converts what the arguments request; returns 1 if a file of a folder failed, else 0."""
    args = _parser().parse_args(arguments)
    check_platform()
    load_plugins(arguments)
    options = dict(map(option, args.option))
    if args.all:
        if options or args.model or args.step is not None:
            raise InputError("--all converts released files: without --model, --option, --step")
        table, failed = convert_files.convert_folder(args.source, args.output)
        print(table)
        return int(failed > 0)
    source = published_or_of_a_run(args.source, args.model, args.step)
    if source is None:
        name = convert_files.convert_file(
            args.source, args.output, args.model, to_torch=args.to_torch, **options
        )
    elif options:
        raise InputError(
            f"--option is for the model of a weights file; the options of {args.source} are known, "
            "so leave it out"
        )
    else:
        name = _export(source, args.output, to_torch=args.to_torch)
    print(f"{name}: written to {args.output}")
    return 0


def _export(source: WeightsSource, output: str, *, to_torch: bool) -> str:
    """Writes published weights, or those of a run's checkpoint, without the optimizer's state."""
    path = convert_files.check_output(output, to_torch=to_torch)
    facts = source.description()
    model = convert_files.whole_model(source.load({}))
    model.config = replace(model.config, **source.config_changes())
    if to_torch:
        convert_files.save_as_torch(model, path)
    else:
        kept = ("training", "licence", "epoch", "step")
        metadata = {key: str(facts[key]) for key in kept if key in facts}
        save_weights(model, path, source=describe(facts), **metadata)
    return f"{model.name} of {describe(facts)}"


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


# Shared with `python -m aa_flax.export`


def add_arguments_of_weights(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model weights are of, and where models are defined."""
    parser.add_argument("--model", help="the model's name, e.g. resnet50_lpf4")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, e.g. pool_only=False; may be given several times",
    )
    parser.add_argument("--step", type=int, help="of a run's checkpoint; default: the best")
    parser.add_argument("--plugin", help="Python files or modules that add models, comma between")


def option(given: str) -> tuple[str, Any]:
    """Parses a model's option: NAME=VALUE, a Python literal or else a word."""
    name, equals, value = given.partition("=")
    if not (name.isidentifier() and equals):
        raise InputError(f"--option is NAME=VALUE, e.g. pool_only=False; got {given!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def published_or_of_a_run(source: str, model: str | None, step: int | None) -> WeightsSource | None:
    """Locates published weights, or those of a run's folder; None: the source is a file."""
    if source in WORDS:
        if model is None:
            raise InputError(f"{source}: of which model? Give --model NAME, e.g. resnet50_lpf4")
        return locate(source, model=model)
    if local_path(source, "the source").is_dir():
        run = OfRun(source, step=step)
        if model not in (None, run.name):
            raise InputError(f"the run in {source} trained {run.name}, not {model}")
        return run
    if step is not None:
        raise InputError(f"--step is of a run's folder, which {source} is not")
    return None


if __name__ == "__main__":
    main()
