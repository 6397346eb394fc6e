"""The command line: recipes, plug-ins, flags, several processes, errors on one line."""

import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from inspect import getfile
from multiprocessing import synchronize, util
from pathlib import Path
from textwrap import fill
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from aa_flax.config import Config, check_config, config_fields, unknown_field
from aa_flax.errors import InputError, first_line, unknown
from aa_flax.files import local_path
from aa_flax.runtime import (
    avoid_wrong_fusions,
    has_onednn,
    keep_compiled_programs,
    start_distributed,
    tune_cpu,
)

QUICKSTART = "digits_resnet18_lpf4"
INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended
_RECIPES = Path(__file__).parent / "configs"
_HELP = {"--help", "-help", "--h", "-h", "-?", "--?"}
_VALUES = {"config object": "NAME_OR_FILE", "comma separated list of strings": "A,B,..."}


def recipe_names() -> list[str]:
    """Returns the recipes of this package, e.g. `resnet50_lpf4`."""
    return sorted(path.stem for path in _RECIPES.glob("[!_]*.py"))


def recipe_file(given: str) -> str:
    """Returns the file of a recipe, given by its name or path; `:VARIANT` may follow either."""
    path, colon, variant = str(local_path(given, "--config")).partition(":")
    names = recipe_names()
    if path in names:
        path = str(_RECIPES / f"{path}.py")
    elif not path.endswith(".py"):
        hint = unknown("recipe", path, names)
        raise InputError(f"{hint} (--config: one of these names, or a file that ends in .py)")
    elif not Path(path).is_file():
        stem, folder = Path(path).stem, Path(path).parent
        files = sorted(str(file) for file in folder.glob("[!_]*.py"))
        hint = unknown("recipe", path, [*files, *names])
        if stem in names:
            hint = f"the recipe of this package is given by its name, --config {stem}"
        raise InputError(f"no Python file {path} (--config): {hint}")
    return f"{path}{colon}{variant}"


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Imports the files and modules of `--plugin FILE_OR_MODULE[,...]`, before flags are parsed.

    A file is imported by its stem, with its folder on `sys.path`, so that processes which a command
    starts find it again. Modules that are imported already stay as they are. Returns their names.
    """
    values, arguments = [], iter(argv)
    for argument in arguments:
        flag, given, value = argument.partition("=")
        if argument == "--":
            break
        if flag in ("--plugin", "-plugin"):
            values.append(value if given else next(arguments, ""))
    return [_load_plugin(name) for value in values for name in value.split(",") if name]


def _load_plugin(name: str) -> str:
    path = local_path(name, "--plugin")
    if path.suffix != ".py" and not path.is_file():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists; something that it imports does not
            raise InputError(
                f"no module or file {name} (--plugin); a file's name ends in .py, a module is "
                "found where Python looks"
            ) from error
        return name
    if not path.is_file():
        raise InputError(f"no file {path} (--plugin); give a Python file, or a module's name")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found = importlib.import_module(path.stem).__file__
    if found is None or Path(found).resolve() != path.resolve():
        raise InputError(
            f"--plugin {path} has the name of another module ({found or path.stem}); rename it"
        )
    return path.stem


def called() -> str:
    """Returns how the user called this command: `python train.py`, `python -m aa_flax.train`."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module and module.name.removesuffix(".__main__")
    return f"python -m {name}" if name else f"python {Path(sys.argv[0]).name}"


def as_called(text: str, module: str) -> str:
    """Returns a text about `python -m MODULE` with the command as the user called it."""
    return text.replace(f"python -m {module}", called())


def define_flags() -> None:
    """Defines `--config`, `--workdir`, `--plugin`, and the flags of runs of several processes.

    Plug-ins are loaded here, so that a command can define flags for what they add.
    """
    with _errors_as_one_line():
        load_plugins(sys.argv[1:])
        if not _HELP & set(sys.argv):
            sys.argv[1:] = _recipe_first(sys.argv[1:])
            _check_overrides(sys.argv[1:])  # the next line applies them to the default
    config_flags.DEFINE_config_file(
        "config",
        recipe_file(QUICKSTART),
        "a recipe's name, or a Python file; NAME:baseline is its model without antialiasing",
        lock_config=False,  # check_config reports unknown fields
        accept_new_attributes=True,
    )
    flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<config.name>")
    flags.DEFINE_list("plugin", None, "Python files or modules that add models, pools, ...")
    flags.DEFINE_bool("distributed", False, "one of several processes, started by SLURM or alike")
    flags.DEFINE_string("coordinator", None, "one of several: HOST:PORT of the first process")
    flags.DEFINE_integer("num_processes", None, "with --coordinator: number of processes")
    flags.DEFINE_integer("process_id", None, "with --coordinator: number of this one, from 0")


def _recipe_first(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `--config=FILE` before its overrides, which have to follow it."""
    recipe, others, rest = [], [], iter(arguments)
    for argument in rest:
        flag, given, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if not given and (value := next(rest, None)) is None:
                raise InputError("--config is followed by nothing; give a recipe's name or file")
            recipe.append(f"--config={recipe_file(value)}")
        else:
            others.append(argument)
    return recipe + others


def _check_overrides(arguments: Sequence[str]) -> None:
    """Checks that overrides name fields of a config, or options of the model, which has its own."""
    known = config_fields()
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.(?!model_options\.)([^=]+)", argument)
        if override and override[1] not in known:
            raise InputError(unknown_field(override[1]))


def config_and_workdir() -> tuple[Config, Path]:
    """Returns the checked config and the run's folder, once flags are parsed."""
    config, workdir = check_config(flags.FLAGS.config), flags.FLAGS.workdir
    if workdir:
        return config, local_path(workdir, "--workdir")
    return config, local_path(f"runs/{config.name}", "the folder of config.name,")


def run(main: Callable[[], None], text: str, *, interrupted: str = "stopped") -> None:
    """Parses the flags and runs `main`; an `InputError` prints as one line, with exit code 1.

    Args:
        text: the beginning of `--help`.
        interrupted: the message when Ctrl-C ends the command, with exit code 130.
    """

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unknown argument {argv[1]!r}; options begin with --, see --help")
        logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
        dtype = flags.FLAGS.config.get("dtype")
        if dtype != "bfloat16" or not has_onednn():  # whose programs cannot be stored
            keep_compiled_programs()
        with suppress(InputError):  # a process that has computed cannot keep it any more
            tune_cpu()
        avoid_wrong_fusions(dtype)
        _join_processes()
        check_platform()
        main()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _on_ctrl_c)
    with _errors_as_one_line():
        try:
            app.run(checked, flags_parser=partial(_parse, text=text))
        except KeyboardInterrupt as stop:
            leave(f"stopped; {stop}" if str(stop) else interrupted, INTERRUPTED)


def _on_ctrl_c(_number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; in a callback of the garbage collector, which drops it, later."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        raise KeyboardInterrupt


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


def leave(message: str, exit_code: int) -> NoReturn:
    """Prints why the command ends in the middle of its work, and ends the process.

    Threads may still read and compute: Python's own exit would free what they use, and crash.
    Processes may still read: Grain would wait ten seconds for each.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further Ctrl-C need not wait
    print(message, file=sys.stderr)
    for pid in _reader_processes():
        os.kill(pid, signal.SIGKILL)
    # Named semaphores would be reported as leaked. Python has no public way to unlink them.
    registered: dict[Any, Any] = vars(util)["_finalizer_registry"]
    unlink = vars(synchronize.SemLock)["_cleanup"].__func__
    for finalizer in [found for found in registered.values() if found._callback is unlink]:
        finalizer()
    jax.distributed.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a closed pipe
            stream.flush()
    os._exit(exit_code)


def _reader_processes() -> set[int]:
    """Returns multiprocessing's children; on Linux also those that a thread is just starting."""
    found = {process.pid for process in multiprocessing.active_children() if process.pid}
    with suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            for pid in (thread / "children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def _parse(argv: Sequence[str], *, text: str) -> list[str]:
    """Parses flags as absl does, with errors for people."""
    arguments = list(argv)
    if _HELP & set(arguments):
        _print_help(text)
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


def _cause(error: Exception) -> str:
    """Returns the message of a recipe or a flag, which absl and ml_collections wrap in others."""
    root: BaseException = error
    while root.__context__ is not None:
        root = root.__context__
    if isinstance(root, InputError):
        return str(root)
    if "get_config() takes 0 positional" in str(root):
        return f"{root}: this recipe has no variants; leave out the colon and what follows it"
    return first_line(error)


def _own_flags() -> list[Any]:
    """Returns flags of this package, the command and its plug-ins, in the order of definition."""
    ours = ("aa_flax", *load_plugins(sys.argv[1:]))
    return [
        flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if module.partition(".")[0] in ours or module == sys.argv[0]  # absl's name of `__main__`
        for flag in defined
    ]


def _print_help(text: str) -> NoReturn:
    """Prints a command's text, its flags, and how to change values of the config."""

    def listed(names: Iterable[str]) -> str:
        return fill(", ".join(names), 98, initial_indent="  ", subsequent_indent="  ")

    print(text, "\nFlags:", sep="")
    for flag in _own_flags():
        kind = _VALUES.get(flag.flag_type(), flag.flag_type().upper())
        name = f"--{flag.name}" + ("" if flag.boolean else f"={kind}")
        default = QUICKSTART if flag.name == "config" else flag.default
        default = ",".join(default) if isinstance(default, list) else default
        explained = "" if default in (None, False) else f" (default: {default})"
        gap = " " * 26
        first = f"  {name}".ljust(26) if len(name) < 23 else f"  {name}\n{gap}"
        lines = fill(flag.help + explained, 98, initial_indent=gap, subsequent_indent=gap)
        print(first + lines[26:])
    print("\nRecipes:", listed(recipe_names()), sep="\n")
    print("\nEvery value of the config is a flag, e.g. --config.optimizer.learning_rate=0.05:")
    groups = {name.partition(".")[0] for name in config_fields() if "." in name}
    print(listed(name for name in config_fields() if name not in groups))
    print(f"They are explained in {getfile(Config)}. Flags of the libraries: --helpfull")
    sys.exit(0)


def check_platform() -> None:
    """Raises an InputError if JAX finds no device, e.g. for want of a driver."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise InputError(
            f"JAX finds no device with JAX_PLATFORMS={jax.config.values['jax_platforms'] or ''!r} "
            f"({first_line(error)}); install JAX for that platform, or unset it"
        ) from error


def _join_processes() -> None:
    values = flags.FLAGS
    alone = [
        f"--{name}" for name in ("num_processes", "process_id") if values[name].value is not None
    ]
    if alone and not values.coordinator:
        raise InputError(
            f"{' and '.join(alone)} without --coordinator: this process would run alone; also give "
            "--coordinator=HOST:PORT, the first process's"
        )
    if values.distributed or values.coordinator:
        start_distributed(values.coordinator, values.num_processes, values.process_id)
