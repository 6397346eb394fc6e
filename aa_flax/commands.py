"""What the commands share: flags, the start of several processes, errors as one line."""

import multiprocessing
import os
import platform
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from hashlib import sha256
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
from aa_flax.errors import InputError, unknown
from aa_flax.files import cache_folder, local_path
from aa_flax.plugins import load_plugins
from aa_flax.recipes import recipe_file, recipe_names
from aa_flax.runtime import keep_memory, start_distributed

QUICKSTART = "digits_resnet18_lpf4"
_HELP = {"--help", "-help", "--h", "-h", "-?", "--?"}
INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended


def called() -> str:
    """How the command of this process was called: `python train.py`, `python -m aa_flax.train`."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module and module.name.removesuffix(".__main__")
    return f"python -m {name}" if name else f"python {Path(sys.argv[0]).name}"


def as_called(text: str, module: str) -> str:
    """A text about `python -m MODULE`, with the command as it was called in place of that."""
    return text.replace(f"python -m {module}", called())


def define_flags() -> None:
    """`--config` (default: the quickstart's), `--workdir`, `--plugin`, those of several processes.

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
        "the recipe, by name, or a Python file; NAME:baseline is its net without antialiasing",
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


def run(main: Callable[[], None], text: str, *, interrupted: str = "stopped") -> None:
    """Parses the flags and runs `main`; an `InputError` prints as one line, with exit code 1.

    Args:
        text: what `--help` begins with.
        interrupted: what to say when Ctrl-C ends the command, with exit code 130.
    """

    def checked(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unknown argument {argv[1]!r}; options begin with --, see --help")
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
        _keep_compiled_programs()
        with suppress(InputError):  # not in a process that has computed
            keep_memory()
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


def leave(message: str, exit_code: int) -> NoReturn:
    """Prints why the command ends amid its work, and ends the process.

    Threads still read and compute: Python's own end would take away what they use, and crash.
    Processes still read: Grain would wait ten seconds for each.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further Ctrl-C need not wait
    print(message, file=sys.stderr)
    for pid in _processes_that_read():
        os.kill(pid, signal.SIGKILL)
    # Named semaphores, which a warning would list as leaked. Python has no public way to them.
    registered: dict[Any, Any] = vars(util)["_finalizer_registry"]
    unlink = vars(synchronize.SemLock)["_cleanup"].__func__
    for finalizer in [found for found in registered.values() if found._callback is unlink]:
        finalizer()
    jax.distributed.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may read it any more
            stream.flush()
    os._exit(exit_code)


def _processes_that_read() -> set[int]:
    """Those of multiprocessing; on Linux also those that a thread is starting just now."""
    found = {process.pid for process in multiprocessing.active_children() if process.pid}
    with suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            for pid in (thread / "children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def _on_ctrl_c(_number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not where Python would drop it: a moment later then."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":  # of a garbage collection
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        raise KeyboardInterrupt


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


def _parse(argv: Sequence[str], *, text: str) -> list[str]:
    """absl's parsing, with errors for people."""
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


def _recipe_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--config=FILE` before its overrides, which have to follow it."""
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
    """That they name fields of a config, or options of the net, which takes any."""
    known = config_fields()
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.(?!model_options\.)([^=]+)", argument)
        if override and override[1] not in known:
            raise InputError(unknown_field(override[1]))


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
    ours = ("aa_flax", *load_plugins(sys.argv[1:]))
    by_module = flags.FLAGS.flags_by_module_dict()
    return [
        flag
        for module, defined in by_module.items()
        if module.partition(".")[0] in ours or module == sys.argv[0]  # as absl names `__main__`
        for flag in defined
    ]


_VALUES = {"config object": "NAME_OR_FILE", "comma separated list of strings": "A,B,..."}


def _print_help(text: str) -> NoReturn:
    """What the command does, its flags, and how to change values of the config."""
    print(text, "\nFlags:", sep="")
    for flag in _own_flags():
        kind = _VALUES.get(flag.flag_type(), flag.flag_type().upper())
        default = QUICKSTART if flag.name == "config" else flag.default
        default = ",".join(default) if isinstance(default, list) else default
        told = "" if default in (None, False) else f" (default: {default})"
        print(_entry(f"--{flag.name}" + ("" if flag.boolean else f"={kind}"), flag.help + told))
    print("\nRecipes:", _listed(recipe_names()), sep="\n")
    print("\nEvery value of the config is a flag, e.g. --config.optimizer.learning_rate=0.05:")
    groups = {name.partition(".")[0] for name in config_fields() if "." in name}
    print(_listed(name for name in config_fields() if name not in groups))
    print(f"What they mean is in {getfile(Config)}. Flags of the libraries: --helpfull")
    sys.exit(0)


def _listed(names: Iterable[str]) -> str:
    return fill(", ".join(names), 98, initial_indent="  ", subsequent_indent="  ")


def _entry(name: str, text: str) -> str:
    gap = " " * 26
    first = f"  {name}".ljust(26) if len(name) < 23 else f"  {name}\n{gap}"
    lines = fill(text, 98, initial_indent=gap, subsequent_indent=gap)
    return first + lines[26:]


def check_platform() -> None:
    """Raises an InputError if JAX finds no device, as on a platform that is not there."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise InputError(
            f"JAX finds no device with JAX_PLATFORMS={jax.config.values['jax_platforms'] or ''!r} "
            f"({str(error).splitlines()[0]}); install JAX for that platform, or unset it"
        ) from error


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
        _remove_unreadable_programs(folder)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _remove_unreadable_programs(folder: Path) -> None:
    """Removes a compiled program that JAX cannot read, which it would warn of at every start.

    A kill or a full disk cuts a file that JAX writes in place, and JAX writes over none. Its
    warning has the name of the program, not of the file, so all programs of that name go.
    """
    others, reported = warnings.showwarning, []

    def show(message, *args, **kwargs) -> None:
        entry = re.match(_UNREADABLE, str(message))
        if entry is None:
            others(message, *args, **kwargs)
            return
        for path in folder.glob(f"{escape(entry[1])}-*"):
            path.unlink(missing_ok=True)
        if not reported:
            print(f"removed unreadable programs from {folder}; compiling again", file=sys.stderr)
            reported.append(True)

    warnings.showwarning = show


# Not where the system refused to read, for now.
_UNREADABLE = r"Error reading persistent compilation cache entry for '(.+?)': (?!.*\[Errno )"


def _processor() -> str:
    """A name for this kind of processor: JAX's own keys do not tell one CPU from another.

    A program for one can hold instructions that another lacks, and a home may be shared.
    """
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = [line for line in lines if re.match("model name|flags|Features|CPU part", line)]
        return sha256("".join(sorted(set(told))).encode()).hexdigest()[:16]
    return platform.machine() or "unknown"
