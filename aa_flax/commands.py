"""What the commands share: flags, the start of several processes, errors as one line."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from aa_flax.config import Config, check_config, config_fields, unknown_field
from aa_flax.disk import cache_folder, local_path
from aa_flax.errors import InputError
from aa_flax.plugins import load_plugins
from aa_flax.sharding import start_distributed
from aa_flax.tables import unknown

QUICKSTART = "configs/digits_resnet18_lpf4.py"
_HELP = {"--help", "-help", "--h", "-h", "-?", "--?"}
INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended


def define_flags() -> None:
    """`--config` (default: the quickstart's), `--workdir`, `--plugin`, those of several processes.

    Plug-ins are loaded here, so that a command can define flags for what they add.
    """
    with _errors_as_one_line():
        load_plugins(sys.argv[1:])
        sys.argv[1:] = _recipe_first(sys.argv[1:])
        for i, argument in enumerate(sys.argv):
            if argument.startswith("--config=~"):  # which a shell leaves as it is
                sys.argv[i] = f"--config={local_path(argument[9:], '--config')}"
        if not _HELP & set(sys.argv):
            _check_config_flags(sys.argv[1:])  # the next line applies them to the default
    config_flags.DEFINE_config_file(
        "config",
        QUICKSTART,
        "the recipe, a file of configs/; --config FILE:baseline is its net without antialiasing",
        lock_config=False,  # unknown fields are told by check_config
        accept_new_attributes=True,
    )
    flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<config.name>")
    flags.DEFINE_list("plugin", None, "Python files or modules that add nets, pools, measures, ...")
    flags.DEFINE_bool("distributed", False, "one of several processes, started by SLURM or alike")
    flags.DEFINE_string("coordinator", None, "one of several: HOST:PORT of the first process")
    flags.DEFINE_integer("num_processes", None, "with --coordinator: how many there are")
    flags.DEFINE_integer("process_id", None, "with --coordinator: which this is, from 0")


def config_and_workdir() -> tuple[Config, Path]:
    """What the flags say, once parsed.

    Raises:
        InputError: a config that is wrong in itself, or an address for a folder.
    """
    config, workdir = check_config(flags.FLAGS.config), flags.FLAGS.workdir
    if workdir:
        return config, local_path(workdir, "--workdir")
    return config, local_path(f"runs/{config.name}", "the folder of config.name,")


def run(main: Callable[[], None], *, interrupted: str = "stopped") -> None:
    """Parses the flags and runs `main`; an `InputError` prints as one line, with exit code 1.

    Args:
        interrupted: what to say when Ctrl-C ends the command, with exit code 130.
    """

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unknown argument {argv[1]!r}; options begin with --, see --help")
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
        _keep_compiled_programs()
        _join_processes()
        main()

    with _errors_as_one_line():
        try:
            app.run(checked, flags_parser=_parse)
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            sys.exit(INTERRUPTED)


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's parsing, with errors for people."""
    arguments = list(argv)
    if _HELP & set(arguments):
        _print_help()
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        known = [f"--{flag.name}" for flag in _own_flags()]
        raise InputError(unknown("flag", f"--{error.flagname}", known)) from error
    except flags.Error as error:
        raise InputError(_cause(error)) from error
    except AttributeError as error:
        if error.name != "get_config":
            raise
        path = getattr(error.obj, "__file__", "")
        raise InputError(f"--config {path} has no function get_config") from error


def _recipe_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--config FILE` before its overrides, which have to follow it."""
    recipe, others, rest = [], [], iter(arguments)
    for argument in rest:
        if re.fullmatch("--?config", argument):
            recipe += [argument, *islice(rest, 1)]
        else:
            (recipe if re.match("--?config=", argument) else others).append(argument)
    return recipe + others


def _check_config_flags(arguments: Sequence[str]) -> None:
    """That the recipe is there, and that overrides name fields of a config."""
    known, recipe = config_fields(), QUICKSTART
    for i, argument in enumerate(arguments):
        override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if override and not override[1].startswith("model_options."):
            if override[1] not in known:
                raise InputError(unknown_field(override[1]))
        elif re.fullmatch(r"--?config(=.*)?", argument):
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            recipe = argument.partition("=")[2] if "=" in argument else following
    path = Path(str(local_path(recipe, "--config")).partition(":")[0])
    if path.suffix != ".py" or not path.is_file():
        there = [*path.parent.glob("[!_]*.py"), *Path("configs").glob("[!_]*.py")]
        nearest = unknown("recipe", str(path), sorted({str(file) for file in there}))
        raise InputError(f"no Python file {path} (--config): {nearest}")


def _cause(error: BaseException) -> str:
    """What a recipe or a flag said, in one line: absl and ml_collections wrap it in tracebacks."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    if isinstance(root, InputError):
        return str(root)
    if "get_config() takes 0 positional" in str(root):
        return f"{root}: this recipe has no variants; leave out the colon and what follows it"
    return str(error).splitlines()[0]


def _own_flags() -> list[Any]:
    """The flags of this package, the command and its plug-ins, in the order of their definition."""
    command = Path(sys.argv[0]).stem
    ours = ("aa_flax", "__main__", command, *load_plugins(sys.argv[1:]))
    by_module = flags.FLAGS.flags_by_module_dict()
    return [
        flag
        for module, defined in by_module.items()
        if module == sys.argv[0] or module.partition(".")[0] in ours
        for flag in defined
    ]


_VALUES = {"config object": "FILE", "comma separated list of strings": "A,B,..."}


def _print_help() -> NoReturn:
    """The command's docstring, its flags, and how to change values of the config."""
    print(sys.modules["__main__"].__doc__, "\nFlags:", sep="")
    for flag in _own_flags():
        kind = _VALUES.get(flag.flag_type(), flag.flag_type().upper())
        default = QUICKSTART if flag.name == "config" else flag.default
        default = ",".join(default) if isinstance(default, list) else default
        told = "" if default in (None, False) else f" (default: {default})"
        print(_entry(f"--{flag.name}" + ("" if flag.boolean else f"={kind}"), flag.help + told))
    print("\nEvery value of the config is a flag, e.g. --config.optimizer.learning_rate=0.05:")
    groups = {name.partition(".")[0] for name in config_fields() if "." in name}
    values = ", ".join(name for name in config_fields() if name not in groups)
    print(fill(values, 98, initial_indent="  ", subsequent_indent="  "))
    print("What they mean is in aa_flax/config.py. Flags of the libraries: --helpfull")
    sys.exit(0)


def _entry(name: str, text: str) -> str:
    gap = " " * 26
    first = f"  {name}".ljust(26) if len(name) < 23 else f"  {name}\n{gap}"
    lines = fill(text, 98, initial_indent=gap, subsequent_indent=gap)
    return first + lines[26:]


def _join_processes() -> None:
    values = flags.FLAGS
    alone = [
        f"--{name}" for name in ("num_processes", "process_id") if values[name].value is not None
    ]
    if alone and not values.coordinator:
        raise InputError(
            f"{' and '.join(alone)} without --coordinator: this process would run alone; give "
            "--coordinator=HOST:PORT, the first process's, too"
        )
    if values.distributed or values.coordinator:
        start_distributed(values.coordinator, values.num_processes, values.process_id)


def _keep_compiled_programs() -> None:
    """On disk, in the user's cache folder, if it can be, unless the user has said where or not."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor() -> str:
    """A name for this kind of processor: JAX's own keys do not tell one CPU from another.

    A program for one can hold instructions that another lacks, and a home may be shared.
    """
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = [line for line in lines if re.match("model name|flags|Features|CPU part", line)]
        return sha256("".join(sorted(set(told))).encode()).hexdigest()[:16]
    return platform.machine() or "unknown"
