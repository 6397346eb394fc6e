# Assigned, since it is the text of --help, and `python -OO` strips docstrings.
__doc__ = """\
Trains a model: python -m aa_flax.train --config NAME [--config.KEY=VALUE ...] [--workdir DIR].

NAME is a recipe of this package, or a Python file. The same command resumes a run that was stopped.
Exit code 75: on SIGTERM or Ctrl-C the run has saved its state; a second Ctrl-C ends it at once
(130).
--resume FILE.pth.tar continues a run of the PyTorch original from its training checkpoint.
"""

from absl import flags

from aa_flax import cli
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.training.stopping import EXIT_CODE, Stopped
from aa_flax.training.train import train

_INTERRUPTED = "stopped at once; the same command continues from the latest checkpoint"


def main() -> None:
    """Runs the command; see the top of this file."""
    cli.define_flags()
    flags.DEFINE_string("resume", None, "a training checkpoint of the PyTorch original")
    flags.DEFINE_bool("accept_data_change", False, "resume a run although its images have changed")
    text = cli.as_called(str(__doc__), "aa_flax.train")
    cli.run(_train, text, interrupted=_INTERRUPTED)


def _train() -> None:
    given = flags.FLAGS
    resume = local_path(given.resume, "--resume") if given.resume else None
    config, workdir = cli.config_and_workdir()
    try:
        train(config, workdir, resume=resume, accept_data_change=given.accept_data_change)
    except Stopped as stopped:
        cli.leave(str(stopped), EXIT_CODE)
    except OSError as error:  # e.g. a full disk, in files that other packages write
        raise InputError(
            f"{error.filename or workdir}: {error.strerror or error}; see to that and give the "
            "same command to continue"
        ) from error


if __name__ == "__main__":
    main()
