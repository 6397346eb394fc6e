# Assigned, since --help prints it and `python -OO` strips docstrings.
__doc__ = """\
Writes a model as ONNX or StableHLO, for inference without this package.

    python -m aa_flax.export WEIGHTS OUT.onnx [--model NAME] [--size PIXELS] [--dynamic-size]
    python -m aa_flax.export WEIGHTS OUT.stablehlo [--preprocessing]

WEIGHTS: a weights file of any kind, the folder of a training run (its best checkpoint, or --step),
`pretrained`, `finetuned`, `scratch` or `baseline` for the model's published weights, or
hf-hub:OWNER/NAME. The model is inferred from them where possible; else give --model. Batches may
have any number of images; --dynamic-size leaves their height and width open, too. Inputs are
normalized floats and outputs logits; with --preprocessing inputs are uint8 images and outputs
probabilities. With --int8 a file of ONNX computes in 8-bit integers, calibrated on half the images
of a folder and compared on the others.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp

from aa_flax.cli import as_called, called, check_platform, load_plugins
from aa_flax.convert import add_arguments_of_weights, option, published_or_of_a_run
from aa_flax.errors import InputError
from aa_flax.export.int8 import LEAST_AGREEMENT
from aa_flax.export.write import Exported, check_output, export
from aa_flax.weights.convert_files import name_of
from aa_flax.weights.hub import PREFIX
from aa_flax.weights.locate import WeightsSource, locate
from aa_flax.weights.read import read_weights


def main() -> None:
    """The command; see the top of this file."""
    try:
        run(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


def run(arguments: Sequence[str]) -> None:
    """Exports as the arguments of the command say."""
    args = _parser().parse_args(arguments)
    check_platform()
    load_plugins(arguments)
    check_output(args.output)
    options = dict(map(option, args.option))
    weights = _weights(args)
    model = weights.load_model(dtype=jnp.float32, **options)
    model.config = replace(model.config, **weights.config_changes())
    names = ("size", "dynamic_size", "preprocessing", "int8", "int8_min_agreement")
    exported = export(model, args.output, **{name: getattr(args, name) for name in names})
    print(f"{model.name}: {_summary(exported)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(),
        description=as_called(str(__doc__), "aa_flax.export"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("output", metavar="OUT")
    add_arguments_of_weights(parser)
    flag = parser.add_argument
    flag("--size", type=int, metavar="PIXELS", help="side of the images; default: the model's")
    flag("--dynamic-size", action="store_true", help="images of every size")
    flag("--preprocessing", action="store_true", help="uint8 to probabilities")
    flag("--int8", metavar="FOLDER", help="quantize, calibrated on images of this folder")
    flag(
        "--int8-min-agreement",
        type=float,
        default=LEAST_AGREEMENT,
        metavar="FRACTION",
        help="smallest fraction of images that keep their class in int8, else the file is "
        "refused; default: %(default)s",
    )
    return parser


def _weights(args: argparse.Namespace) -> WeightsSource:
    if args.weights.startswith(PREFIX):
        if not args.model:
            raise InputError(
                f"{args.weights}: of which model? Give --model NAME, e.g. resnetblur50"
            )
        return locate(args.weights, model=args.model)
    found = published_or_of_a_run(args.weights, args.model, args.step)
    if found is not None:
        return found
    name = name_of(read_weights(args.weights), args.model, args.weights)
    found = locate(args.weights, model=name)
    if found.name != name:
        raise InputError(f"{args.weights} contains weights of {found.name}, not of {name}")
    return found


def _summary(exported: Exported) -> str:
    same = "not compared with the model: pip install onnxruntime"
    if exported.difference is not None:
        same = f"within {exported.difference:.1e} of the model"
    line = f"written to {exported.path}, {exported.metadata['output']} {same}"
    if exported.agreement is not None:
        facts = exported.metadata["int8"]
        line += (
            f"; in int8 the same class for {100 * exported.agreement:.1f} % of "
            f"{facts['compared_on']} images (calibrated on {facts['calibrated_on']} others)"
        )
        if facts["min_agreement"] != LEAST_AGREEMENT:
            line += f"; at least {100 * facts['min_agreement']:g} % were requested"
    return line


if __name__ == "__main__":
    main()
