"""Converts weights between PyTorch's files and safetensors.

    python convert_torch_weights.py IN.pth OUT.safetensors [--model NAME]
    python convert_torch_weights.py --to-torch IN.safetensors OUT.pth [--model NAME]
    python convert_torch_weights.py [--to-torch] WORKDIR OUT [--step N]
    python convert_torch_weights.py --all FOLDER OUT_FOLDER

IN.pth: a released file, one of torchvision's, or a training checkpoint. The net follows from the
file where it can; else give --model. WORKDIR: the folder of a run of train.py; its best checkpoint
is taken, or that of a step. --all converts every released file that stands in FOLDER.
"""

import argparse
import sys
from pathlib import Path

from aa_flax.errors import InputError
from aa_flax.training.initialise import model_from_workdir
from aa_flax.weights.convert import convert_torch_file, save_as_torch, write_as_torch
from aa_flax.weights.files import save_weights
from aa_flax.weights.released import convert_folder, table_of


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--model", help="the net's name, e.g. resnet50_lpf4")
    parser.add_argument("--step", type=int, help="of a run's checkpoint; default: the best")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--to-torch", action="store_true", help="from safetensors to torch")
    direction.add_argument("--all", action="store_true", help="a folder of released files")
    args = parser.parse_args()
    if args.all:
        outcomes = convert_folder(args.source, args.output)
        print(table_of(outcomes))
        return int(any(outcome.failed for outcome in outcomes))
    if args.source.is_dir():
        name = _export_run(args.source, args.output, args.step, to_torch=args.to_torch)
    elif args.to_torch:
        name = write_as_torch(args.source, args.output, args.model)
    else:
        name = convert_torch_file(args.source, args.output, args.model)
    print(f"{name}: written to {args.output}")
    return 0


def _export_run(workdir: Path, output: Path, step: int | None, *, to_torch: bool) -> str:
    """Writes the weights of a run's checkpoint, without the optimizer's state."""
    model, description = model_from_workdir(workdir, step)
    if to_torch:
        save_as_torch(model, output)
    else:
        save_weights(model, output, source=description)
    return f"{model.name} of {description}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
