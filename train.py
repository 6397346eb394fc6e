"""Trains a net: python train.py --config configs/NAME.py [--config.KEY=VALUE ...] [--workdir DIR].

Run again with the same flags, it continues where it was stopped.
"""

from aa_flax import commands
from aa_flax.training.loop import train


def main() -> None:
    train(*commands.config_and_workdir())


if __name__ == "__main__":
    commands.define_flags()
    commands.run(main)
