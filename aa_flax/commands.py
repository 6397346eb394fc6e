"""What the commands share: flags, and errors a user can mend as one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from aa_flax.config import Config
from aa_flax.errors import InputError

QUICKSTART = "configs/digits_resnet18_lpf4.py"


def define_flags() -> None:
    """`--config` (default: the quickstart's) and `--workdir`."""
    config_flags.DEFINE_config_file("config", QUICKSTART, "the recipe, a file of configs/")
    flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<config.name>")


def config_and_workdir() -> tuple[Config, Path]:
    """What the flags say, once parsed."""
    config: Config = flags.FLAGS.config
    return config, Path(flags.FLAGS.workdir or f"runs/{config.name}")


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; an `InputError` prints as one line, with exit code 1."""

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unknown argument {argv[1]!r}; options begin with --, see --help")
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
        main()

    try:
        app.run(checked)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; train.py continues after the last finished epoch, given the same flags")
