"""Converts weights between PyTorch's files and safetensors.

    python convert_torch_weights.py IN.pth OUT.safetensors [--model NAME]
    python convert_torch_weights.py --to-torch IN.safetensors OUT.pth [--model NAME]
    python convert_torch_weights.py --all FOLDER OUT_FOLDER

IN.pth: a released file, one of torchvision's, or a training checkpoint. The net follows from the
file where it can; else give --model. --all converts every released file that stands in FOLDER.
"""

import argparse
import sys
from pathlib import Path

from aa_flax.errors import InputError
from aa_flax.weights.convert import convert_torch_file, write_as_torch
from aa_flax.weights.released import convert_folder, table_of


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--model", help="the net's name, e.g. resnet50_lpf4")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--to-torch", action="store_true", help="from safetensors to torch")
    direction.add_argument("--all", action="store_true", help="a folder of released files")
    args = parser.parse_args()
    if args.all:
        outcomes = convert_folder(args.source, args.output)
        print(table_of(outcomes))
        return int(any(outcome.failed for outcome in outcomes))
    if args.to_torch:
        name = write_as_torch(args.source, args.output, args.model)
    else:
        name = convert_torch_file(args.source, args.output, args.model)
    print(f"{name}: written to {args.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
