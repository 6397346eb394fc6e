"""Trains a net: python train.py --config configs/NAME.py [--config.KEY=VALUE ...] [--workdir DIR].

Run again with the same flags, it continues where it was stopped. Exit code 75: told to stop
(SIGTERM or Ctrl-C), it has saved where it stands; a second Ctrl-C ends it at once (130).
--resume FILE.pth.tar continues a run of the PyTorch original from its training checkpoint.
"""

import sys

from absl import flags

from aa_flax import commands
from aa_flax.disk import local_path
from aa_flax.training.loop import train
from aa_flax.training.stopping import EXIT_CODE, Stopped

_RESUME = flags.DEFINE_string("resume", None, "a training checkpoint of the PyTorch original")
_ACCEPT = flags.DEFINE_bool(
    "accept_data_change", False, "continue a run although its images are others than before"
)
_INTERRUPTED = "stopped at once; the same command continues from the latest checkpoint"


def main() -> None:
    resume = local_path(_RESUME.value, "--resume") if _RESUME.value else None
    config, workdir = commands.config_and_workdir()
    try:
        train(config, workdir, resume=resume, accept_data_change=_ACCEPT.value)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    commands.define_flags()
    commands.run(main, interrupted=_INTERRUPTED)
