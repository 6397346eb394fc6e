"""The files of the project agree with one another."""

import ast
import os
import re
import subprocess
import tomllib

import pytest
import yaml

import aa_flax
from tests.docs.markdown import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [c.rsplit(" ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
# Docstrings that need others of a listing to be understood.
LEANING = re.compile(r"(Of|That of|Those of|As|Likewise|The same)\b")


def distribution(requirement: str) -> str:
    return re.split(r"[\[=><~ ]", requirement)[0].lower().replace("_", "-")


def test_the_version_is_one():
    citation, recipe = (
        yaml.safe_load((ROOT / file).read_text()) for file in ("CITATION.cff", "conda/recipe.yaml")
    )
    assert aa_flax.__version__ == PROJECT["version"] == citation["version"]
    assert recipe["package"]["version"] == PROJECT["version"]
    released = f"\n## {PROJECT['version']} - {citation['date-released']}\n"
    assert released in (ROOT / "CHANGELOG.md").read_text()


def test_conda_installs_what_pip_does():
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    needed = {name: recipe["requirements"][name] for name in ("host", "run")}
    needed = {name: [line.replace(" ", "") for line in lines] for name, lines in needed.items()}
    python = f"python{PROJECT['requires-python']}"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert needed == {"host": [python, "pip", *build], "run": [python, *PROJECT["dependencies"]]}


def test_what_the_package_and_its_tests_need_is_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {distribution(line) for line in pins if "==" in line}
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert {distribution(requirement) for requirement in needed} <= pinned


def test_the_workflow_takes_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert workflow["jobs"]["ci"]["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]


@pytest.mark.parametrize("extra", ["", "cuda12"])
def test_the_container_installs_the_wheel_and_the_extra_that_is_asked_for(extra, tmp_path):
    (install,) = re.findall(r"^RUN (pip .*?) &&", (ROOT / "docker/Dockerfile").read_text(), re.M)
    (tmp_path / "aa_flax-9-py3-none-any.whl").touch()
    script = f'pip() {{ printf "%s\\n" "$@"; }}\n{install}'
    extras = f"[{extra}]" if extra else ""
    arguments = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": os.defpath, "EXTRAS": extras},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert arguments[-1] == f"./aa_flax-9-py3-none-any.whl{extras}"
    assert (ROOT / arguments[arguments.index("-c") + 1]).exists()
    assert extra in {"", *PROJECT["optional-dependencies"]}


def test_the_readme_begins_with_two_commands():
    """`.ci/run` reads them from there."""
    blocks = re.findall(r"^```bash\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.M | re.S)
    first, second = (block.split(" && ")[1:] for block in blocks)
    assert first[:2] == ["python train.py --config configs/digits_resnet18.py", "python train.py"]
    assert second == ["pytest"]


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_no_benchmark_reaches_into_the_tests(script):
    text = script.read_text()
    assert "sys.path" not in text
    assert not re.search(r"^\s*(from|import) tests\b", text, re.MULTILINE)


def test_docstrings_are_clear_by_themselves():
    leaning = []
    for path in sorted((ROOT / "aa_flax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node) or ""
                if LEANING.match(docstring) and not node.name.startswith("_"):
                    leaning.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert leaning == []
