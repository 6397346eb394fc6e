"""The commands as users run them, their mistakes, recipes and plug-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import aa_flax
from aa_flax import InputError, cli, files, runtime
from aa_flax.__main__ import COMMANDS
from aa_flax.cli import load_plugins, recipe_file, recipe_names

ROOT = Path(__file__).parents[1]
TAKEN = """from aa_flax import Measure, Option, register_measure
class Taken(Measure): options = (Option("workdir", "what the command has already"),)
register_measure(Taken())
"""


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train.py", "--config.bach_size=3"],
            "unknown field 'config.bach_size'; did you mean con",
        ),
        (
            ["train.py", "--config.batch_size=many"],
            "flag --config.batch_size=many: invalid literal",
        ),
        (["train.py", "--config.model=resnet81"], "unknown model 'resnet81'; did you mean"),
        (["train.py", "shift"], "unknown argument 'shift'"),
        (["eval.py", "--weights", "nowhere"], "no run in nowhere"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_run(command, message, tmp_path):
    workdir = [] if command[-1] == "shift" else [f"--workdir={tmp_path / 'run'}"]
    done = run(*command, *workdir)
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_shows_the_flags_people_need_and_every_value_of_the_config():
    done = run("train.py", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Trains a model: python train.py --config")
    for flag in ("--config=NAME_OR_FILE", "--workdir=", "--distributed", "--resume=", "--plugin="):
        assert f"\n  {flag}" in done.stdout
    assert "optimizer.learning_rate" in done.stdout
    assert "resnet50_lpf4_finetune" in done.stdout
    assert "aa_flax.train" not in done.stdout
    assert "--pdb" not in done.stdout  # without absl's flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.lr=8"], r"field 'config\.lr'; did you mean config\.optimizer\.learning_rate\?"),
        (["--config.optimzer.momentum=0"], r"field .*did you mean config\.optimizer\.momentum"),
        (["--noconfig.remta"], r"unknown field 'config\.remta'; did you mean config\.remat"),
    ],
)
def test_an_unknown_field_is_reported_with_the_nearest(arguments, message):
    with pytest.raises(InputError, match=message):
        cli._check_overrides(arguments)


@pytest.mark.parametrize(
    "command", [["train"], ["convert", "in", "out"], ["export", "in", "out.onnx"]]
)
def test_a_missing_platform_is_an_error_of_one_line(command, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nowhere")
    done = run("-m", f"aa_flax.{command[0]}", *command[1:])
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX finds no device with JAX_PLATFORMS='nowhere' (")
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_command_is_listed():
    files = (ROOT / "aa_flax").rglob("*.py")
    commands = [file for file in files if 'if __name__ == "__main__"' in file.read_text()]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in commands}
    listed = run("-m", "aa_flax").stdout
    assert {module.removesuffix(".__main__") for module in modules} == {"aa_flax", *COMMANDS}
    assert all(f"python -m {name} " in listed for name in COMMANDS)
    done = run("-m", "aa_flax", "train")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown command 'aa_flax train'; did you mean aa_flax.tr")
    assert len(done.stderr.splitlines()) == 1


def test_help_does_not_need_docstrings():
    code = (
        "from importlib import import_module; from aa_flax.__main__ import COMMANDS\n"
        "packages = ('aa_flax.export', 'aa_flax.report')\n"
        "names = [n + '.__main__' * (n in packages) for n in COMMANDS]\n"
        "print([name for name in names if 'python -m' not in str(import_module(name).__doc__)])"
    )
    assert run("-OO", "-c", code).stdout == "[]\n"


def test_any_option_of_the_model_can_be_given():
    cli._check_overrides(["--config.model_options.pool_only=False", "--output=x"])


def test_a_command_names_itself_as_it_was_called(tmp_path):
    (tmp_path / "taken.py").write_text(TAKEN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # not in the clone: no train.py there
    for command, name in (
        ([str(ROOT / "eval.py")], "python eval.py"),
        (["-m", "aa_flax.eval"], "python -m aa_flax.eval"),
    ):
        words = [sys.executable, *command, "--plugin=taken.py", "--help"]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert f"which is a flag of {name} already" in done.stderr
    helped = run("convert_torch_weights.py", "--help").stdout
    assert helped.startswith("usage: python convert_torch_weights.py")
    assert "python convert_torch_weights.py IN OUT.safetensors" in helped
    assert "aa_flax" not in helped


def test_importing_the_package_loads_nothing_heavy_and_built_in_measures_come_first():
    code = (
        "import sys, aa_flax\n"
        "heavy = {'torch', 'tensorflow', 'matplotlib', 'grain', 'orbax', 'scipy'}\n"
        "print(heavy & sys.modules.keys(), set(aa_flax.__all__) - set(dir(aa_flax)))\n"
        "from aa_flax import *\n"
        "class Mine(Measure): options = (Option('mine', 'of a user'),)\n"
        "register_measure(Mine())\n"
        "from aa_flax.evaluation.measures import MEASURES\n"
        "print(next(iter(MEASURES)), list(MEASURES)[-1], callable(evaluate))"
    )
    assert run("-c", code).stdout.split("\n")[:2] == ["set() set()", "accuracy mine True"]


def test_the_package_has_no_other_names():
    assert [name for name in dir(aa_flax) if not name.startswith("__")] == aa_flax.__all__
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        aa_flax.evaluat  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_recipe_may_follow_the_values_that_change_it():
    given = [
        "--config.seed=1",
        "--config",
        "configs/imagenet.py",
        "--shift",
        "--config.model=vgg11",
    ]
    recipe = "--config=configs/imagenet.py"
    assert cli._recipe_first(given) == [recipe, given[0], *given[3:]]
    assert cli._recipe_first(["--shift", f"{recipe}:x"]) == [f"{recipe}:x", "--shift"]
    with pytest.raises(InputError, match="--config is followed by nothing"):
        cli._recipe_first(["--shift", "--config"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrokdir=x"], "unknown flag '--wrokdir'; did you mean --workdir?"),
        (["--config=configs/resnet18_lpf4.py:basline"], "unknown variant 'basline' of a recipe"),
        (["--config=configs/resnet50_lpf4_finetune.py:baseline"], "this recipe has no variants"),
        (["--config.num_epochs=0"], "config.num_epochs is 0; it has to be at least 1"),
        (["--workdir=gs://bucket/run"], "--workdir gs://bucket/run is an address (gs)"),
        (["--resume=s3://bucket/x.pth"], "--resume s3://bucket/x.pth is an address (s3)"),
        (["--num_processes=2", "--process_id=0"], "--num_processes and --process_id without --coo"),
    ],
)
@pytest.mark.slow
def test_more_mistakes_get_one_line_each(arguments, message):
    done = run("train.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_has_the_commands_own_message_and_exit_code():
    code = (
        "import sys; sys.argv = ['x']\n"
        "from aa_flax import cli\n"
        "def main(): raise KeyboardInterrupt\n"
        "cli.define_flags(); cli.run(main, 'text', interrupted='what is done is kept')"
    )
    done = run("-c", code)
    assert done.returncode == 130
    assert done.stderr.strip() == "what is done is kept"


@pytest.mark.parametrize(
    "work",
    [
        "threading.Thread(target=time.sleep, args=[60]).start(); raise KeyboardInterrupt",
        "gc.callbacks.append(_xla_gc_callback); gc.collect(); gc.callbacks.clear(); time.sleep(60)",
    ],
)
def test_ctrl_c_waits_for_no_thread_and_is_not_lost_in_a_garbage_collection(work):
    code = (
        "import gc, os, signal, sys, threading, time; sys.argv = ['x']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from aa_flax import cli\n"
        "def _xla_gc_callback(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        f"def main(): {work}\n"
        "cli.define_flags(); began = time.perf_counter()\n"
        "seconds = lambda: int(time.perf_counter() - began)\n"
        "leave, os._exit = os._exit, lambda code: leave(code + seconds())\n"
        "cli.run(main, 'text', interrupted='what is done is kept')"
    )
    done = run("-c", code)
    assert 130 <= done.returncode < 150
    assert done.stderr.strip() == "what is done is kept"


def test_a_cache_that_cannot_be_written_and_no_home_keep_nobody_from_running(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    runtime.keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_user_without_a_home_has_a_private_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a KeyError, as for an unknown user
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files._folder_without_home.cache_clear()
    folder = files.cache_folder()
    assert folder.parent.parent == tmp_path
    assert folder.parent.stat().st_mode & 0o077 == 0
    files._folder_without_home.cache_clear()
    folder.parent.chmod(0o777)  # anybody could have put files there
    assert files.cache_folder() != folder
    files._folder_without_home.cache_clear()


def test_a_compiled_program_that_was_cut_is_removed_and_reported_once(tmp_path, monkeypatch):
    code = (
        "from aa_flax import runtime; runtime.keep_compiled_programs()\n"
        "import jax; jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((9, 9)))"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert run("-c", code).stderr == ""
    programs = list(tmp_path.rglob("*-cache"))
    assert len(programs) > 1
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])
    assert run("-c", code).stderr.startswith("removed unreadable programs from")
    assert all(len(program.read_bytes()) > 100 for program in programs)
    assert run("-c", code).stderr == ""


def test_a_second_command_compiles_nothing_again(tmp_path, monkeypatch):
    code = (
        "import atexit, sys; sys.argv = ['x']\n"
        "import jax; from aa_flax import cli\n"
        "events, at = [], '/jax/compilation_cache/cache_'\n"
        "jax.monitoring.register_event_listener(lambda name, **_: events.append(name))\n"
        "atexit.register(lambda: print(events.count(at + 'hits'), events.count(at + 'misses')))\n"
        "cli.define_flags()\n"
        "cli.run(lambda: jax.jit(lambda x: x @ x.T)(jax.numpy.ones(4)), '')"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    first, second = (run("-c", code).stdout.split() for _ in range(2))
    assert (int(first[-2]), int(second[-1])) == (0, 0)
    assert int(second[-2]) == int(first[-1]) > 0
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert run("-c", code).stdout.split()[-2:] == ["0", "0"]


def test_a_recipe_name_is_a_file_of_the_package_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(aa_flax.__file__).parent / "configs"
    assert recipe_file("resnet18_lpf4") == f"{folder}/resnet18_lpf4.py"
    assert recipe_file("resnet18_lpf4:baseline") == f"{folder}/resnet18_lpf4.py:baseline"
    assert "__init__" not in recipe_names()


def test_a_clone_has_the_same_files_in_configs():
    for name in recipe_names():
        assert (ROOT / "configs" / f"{name}.py").read_text() == Path(recipe_file(name)).read_text()


def test_recipes_import_what_a_wheel_has_too():
    for name in recipe_names():
        assert not re.search(r"^(from|import) configs\b", Path(recipe_file(name)).read_text(), re.M)


def test_a_recipe_of_the_user_is_given_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "imagenet.py").write_text("")
    assert recipe_file("imagenet.py:x") == "imagenet.py:x"
    assert recipe_file("~/imagenet.py") == f"{tmp_path}/imagenet.py"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet51_lpf4", r"unknown recipe 'resnet51_lpf4'; did you mean resnet50_lpf4"),
        ("configs", r"unknown recipe 'configs'; known: alexnet_lpf4.*\(--config: one of these na"),
        (
            "configs/resnet50_lpf4.py",
            r"no Python file configs/.*given by its name, --config r",
        ),
        ("mine.py", r"no Python file mine\.py \(--config\): .*did you mean mime\.py"),
        ("gs://bucket/mine.py", r"--config gs://bucket/mine\.py is an address"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest_name(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mime.py").write_text("")
    with pytest.raises(InputError, match=message):
        recipe_file(given)


@pytest.fixture
def own_modules(monkeypatch):
    """Removes modules and paths that a test adds."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.usefixtures("own_modules")
def test_files_and_modules_are_imported_once_in_their_order(tmp_path):
    for name in ("plug_one", "plug_two"):
        (tmp_path / f"{name}.py").write_text("import sys; sys.loaded.append(__name__)")
    sys.loaded = []  # pyright: ignore[reportAttributeAccessIssue]
    argv = [f"--plugin={tmp_path}/plug_two.py,plug_one", "--workdir", "x", "--plugin", "json"]
    assert load_plugins(argv) == ["plug_two", "plug_one", "json"]
    assert load_plugins([*argv, "--", "--plugin=nowhere"]) == ["plug_two", "plug_one", "json"]
    assert sys.loaded == ["plug_two", "plug_one"]  # pyright: ignore[reportAttributeAccessIssue]
    assert str(tmp_path) in sys.path


@pytest.mark.usefixtures("own_modules")
def test_a_missing_plugin_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.py \(--plugin\); give a Python file"):
        load_plugins([f"--plugin={tmp_path}/nowhere.py"])
    with pytest.raises(InputError, match=r"no module or file nowhere\.at_all \(--plugin\)"):
        load_plugins(["--plugin", "nowhere.at_all"])
    with pytest.raises(InputError, match=r"--plugin s3://b/x\.py is an address"):
        load_plugins(["--plugin", "s3://b/x.py"])


@pytest.mark.usefixtures("own_modules")
def test_a_file_with_the_name_of_another_module_is_refused(tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(InputError, match=r"has the name of another module .*rename it"):
        load_plugins([f"--plugin={tmp_path}/json.py"])


@pytest.mark.usefixtures("own_modules")
def test_an_error_inside_a_plugin_is_its_own(tmp_path):
    (tmp_path / "plug_broken.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_plugins([f"--plugin={tmp_path}/plug_broken.py"])
