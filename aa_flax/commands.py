"""What the commands share: flags, the start of several processes, errors as one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from aa_flax.config import Config
from aa_flax.disk import cache_folder
from aa_flax.errors import InputError
from aa_flax.sharding import start_distributed

QUICKSTART = "configs/digits_resnet18_lpf4.py"


def define_flags() -> None:
    """`--config` (default: the quickstart's), `--workdir`, and those of several processes."""
    config_flags.DEFINE_config_file("config", QUICKSTART, "the recipe, a file of configs/")
    flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<config.name>")
    flags.DEFINE_bool("distributed", False, "one of several processes, started by SLURM or alike")
    flags.DEFINE_string("coordinator", None, "one of several: HOST:PORT of the first process")
    flags.DEFINE_integer("num_processes", None, "with --coordinator: how many there are")
    flags.DEFINE_integer("process_id", None, "with --coordinator: which this is, from 0")


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
        _keep_compiled_programs()
        values = flags.FLAGS
        if values.distributed or values.coordinator:
            start_distributed(values.coordinator, values.num_processes, values.process_id)
        main()

    try:
        app.run(checked)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; train.py continues after the last finished epoch, given the same flags")


def _keep_compiled_programs() -> None:
    """On disk, in the user's cache folder, unless the user has said where or not to."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
