"""Trains a net: python train.py --config configs/NAME.py [--config.KEY=VALUE ...] [--workdir DIR].

Run again with the same flags, it continues where it was stopped. Exit code 75: told to stop
(SIGTERM), it has saved where it stands. --resume FILE.pth.tar continues a run of the PyTorch
original from its training checkpoint.
"""

import sys
from pathlib import Path

from absl import flags

from aa_flax import commands
from aa_flax.training.loop import train
from aa_flax.training.stopping import EXIT_CODE, Stopped

_RESUME = flags.DEFINE_string("resume", None, "a training checkpoint of the PyTorch original")


def main() -> None:
    resume = Path(_RESUME.value) if _RESUME.value else None
    try:
        train(*commands.config_and_workdir(), resume=resume)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    commands.define_flags()
    commands.run(main)
