"""Files and modules of the user's, imported before a command parses its flags."""

import sys

import pytest

from aa_flax import InputError
from aa_flax.plugins import load_plugins


@pytest.fixture(autouse=True)
def same_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_files_and_modules_are_imported_once_in_their_order(tmp_path):
    for name in ("plug_one", "plug_two"):
        (tmp_path / f"{name}.py").write_text("import sys; sys.loaded.append(__name__)")
    sys.loaded = []  # pyright: ignore[reportAttributeAccessIssue]
    argv = [f"--plugin={tmp_path}/plug_two.py,plug_one", "--workdir", "x", "--plugin", "json"]
    assert load_plugins(argv) == ["plug_two", "plug_one", "json"]
    assert load_plugins([*argv, "--", "--plugin=nowhere"]) == ["plug_two", "plug_one", "json"]
    assert sys.loaded == ["plug_two", "plug_one"]  # pyright: ignore[reportAttributeAccessIssue]
    assert str(tmp_path) in sys.path


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.py \(--plugin\); give a Python file"):
        load_plugins([f"--plugin={tmp_path}/nowhere.py"])
    with pytest.raises(InputError, match=r"no module or file nowhere\.at_all \(--plugin\)"):
        load_plugins(["--plugin", "nowhere.at_all"])
    with pytest.raises(InputError, match=r"--plugin s3://b/x\.py is an address"):
        load_plugins(["--plugin", "s3://b/x.py"])


def test_a_file_with_the_name_of_another_module_is_refused(tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(InputError, match=r"has the name of another module .*rename it"):
        load_plugins([f"--plugin={tmp_path}/json.py"])


def test_an_error_inside_a_plugin_is_its_own(tmp_path):
    (tmp_path / "plug_broken.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_plugins([f"--plugin={tmp_path}/plug_broken.py"])
