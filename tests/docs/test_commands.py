"""Every command, flag and link of the documentation works."""

import multiprocessing
import re
import tomllib
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import pytest

from aa_flax.configs import imagenet
from tests.docs.attempt import REACHED, attempt
from tests.docs.markdown import (
    PAGES,
    ROOT,
    Found,
    anchors,
    commands,
    fields,
    flags,
    links,
    other_lines,
)

# Placeholders of pages, and examples of their values.
PLACEHOLDERS = {
    " DATA": " --config.data.path=ILSVRC2012",
    "--config.data.path=...": "--config.data.path=ILSVRC2012",
    "--config ...": "",
    "--config.KEY=VALUE ...": "--config.batch_size=32",
    "configs/NAME.py": "configs/resnet50_lpf4.py",
    "--config NAME": "--config resnet50_lpf4",
    "=NET": "=resnet152_lpf4",
    "train.py ...": "train.py",
    "--step N": "--step 5",
}
NOT_TRIED = {
    "python main.py": "the original's",
    "python -m aa_flax.convert": "named, without its arguments",
    "python -m aa_flax.data.imagenet_val": "named, without its arguments",
    "python -m aa_flax.report": "named, without its arguments",
    "python docs/tables.py": "writes the pages; test_tables.py compares them",
    "python -m build": "not of this project; .ci/wheel runs it",
    "python -m tests.make_golden_logits": "overwrites stored logits; it has no flags",
    "tfds build": "downloads a data set",
    "pip install pre-commit": "not of this project",
    "pre-commit": "needs a program that the extras do not have",
}
# The start of blocks that are neither Python nor commands to be tried, with the reason.
NOT_COMMANDS = {
    "(f + z²": "a formula",
    "p(T_d x) =": "a formula",
    "g(x) =": "a formula",
    "r = min(": "a formula",
    "G x ": "a formula",
    "L(h_K": "a formula",
    "name = aa_flax.push_to_hub": "needs a server; test_pretrained.py has one",
    "@inproceedings": "BibTeX",
    "#": "a comment, or a batch script's head, above commands that are tried",
    "FLOWERS/": "how a folder looks",
    "benchmarks/gpu.sh": "needs a GPU",
    "chromium ": "needs Chromium; test_browser.py opens the page",
    'create_model("resnetblur50"': "downloads; test_hub.py does so from a local server",
    "'--config.data.name=": "ends of commands; test_splits.py reads these names",
    "options:": "settings of the site's generator, which .ci/run runs",
}
THE_ORIGINALS = {"--pretrained", "--force_nonfinetuned", "--out-dir", "--no-data-aug", "--gpu"}
# Missing runs and files are reported before data is opened.
MISSING = ("no run in", "no file", "no such file", "no folder")
COMMANDS = [command for page in PAGES for command in commands(page)]
PYTHON = [c for c in COMMANDS if "python " in c.text]
TRAINING = [c for c in PYTHON if "train.py" in c.text or "aa_flax.train" in c.text]
OTHERS = [c for c in COMMANDS if "python " not in c.text]


# The plug-in of the README's command.
MY_POOL = """import aa_flax
aa_flax.register_pool("my_pool", lambda stride: aa_flax.BlurPool(filter_size=3, stride=stride))
"""


@pytest.fixture(scope="module")
def try_out(tmp_path_factory):
    """Returns `attempt` in a fresh process, in a folder with `configs/` and `tests/`."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_pool.py").write_text(MY_POOL)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.docs.attempt"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield lambda command: pool.submit(attempt, command, folder).result()


def readers(command: str) -> str:
    """Returns the command as a reader would type it."""
    for placeholder, example in PLACEHOLDERS.items():
        command = command.replace(placeholder, example)
    return re.sub(r"[\[\]]", "", command[command.index("python ") :])


def reason_not_to_try(command: Found) -> str | None:
    text = command.text
    named = (r for start, r in NOT_TRIED.items() if text.startswith(start))
    reason = next(named, None)
    return None if reason and "named" in reason and text not in NOT_TRIED else reason


@pytest.mark.parametrize("command", PYTHON, ids=str)
def test_every_command_is_understood(command, try_out):
    if reason := reason_not_to_try(command):
        pytest.skip(reason)
    output, _ = try_out(readers(command.text))
    last = output.strip().splitlines()[-1]
    helped = command.text.endswith("--help") and "Flags:" in output
    assert helped or REACHED in last or any(missing in last for missing in MISSING), output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_tried_or_has_a_reason_not_to_be(page):
    known = tuple(NOT_COMMANDS)
    assert [str(line) for line in other_lines(page) if not line.text.startswith(known)] == []


@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_every_training_command_leaves_room_for_its_own_shifts(command):
    text = readers(command.text)
    values = dict(re.findall(r"--config\.([\w.]+)=(\S+)", text))
    recipe = re.search(r"configs/(digits_\w+)\.py", text)
    recipes = import_module(f"aa_flax.configs.{recipe[1]}") if recipe else imagenet
    config = recipes.get_config()
    size, crop, reach = (
        int(values.get(key, default))
        for key, default in [
            ("data.image_size", config.data.image_size),
            ("data.crop_size", config.data.crop_size),
            ("eval.shift_range", config.eval.shift_range),
        ]
    )
    assert size >= crop + reach - 1


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_every_other_command_names_what_there_is(command):
    if reason := reason_not_to_try(command):
        pytest.skip(reason)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:\.|aa_flax)\[([\w,]+)\]", command.text):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    for path in re.findall(r"\b(?:tests/\S+|constraints\.txt)", command.text):
        assert (ROOT / path).exists()


def test_every_flag_is_one_of_a_program(try_out):
    known = THE_ORIGINALS | {"--config.KEY", "--index-url"}  # of pip
    report = "-m aa_flax.report RESULTS --output FOLDER"
    export = "-m aa_flax.export WEIGHTS OUT.onnx"
    for program in ["train.py", "eval.py", "convert_torch_weights.py IN OUT", export, report]:
        known.update(try_out(f"python {program}")[1])
    known |= {f"--config.{field}" for field in _fields(imagenet.get_config())}
    unknown = [
        str(flag)
        for page in PAGES
        for flag in flags(page)
        if re.split(r"[=\[,]", flag.text)[0] not in known
        and not flag.text.startswith("--config.model_options.")  # any option of the model
    ]
    assert unknown == []


def test_every_field_is_one_of_the_config():
    known = _fields(imagenet.get_config())
    assert [str(field) for page in PAGES for field in fields(page) if field.text not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.text.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def _fields(config, prefix: str = "") -> list[str]:
    """Returns every field of a config by its path."""
    found = []
    for key, value in config.items():
        found += _fields(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]
    return found
