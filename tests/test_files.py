"""Atomic writes, and JSON of users or other tools."""

import os
import threading

import pytest

from aa_flax.files import parse_json, replacing


@pytest.fixture
def private_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_file_gets_the_mode_that_the_umask_leaves(tmp_path, private_umask):
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_the_umask_of_other_threads_files_is_never_touched(tmp_path, private_umask, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the process"))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")


def test_writers_of_one_path_at_once_leave_one_whole_file(tmp_path):
    def write(text):
        for _ in range(50):
            with replacing(tmp_path / "file") as temporary:
                temporary.write_text(text * 1000)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in ("a" * 1000, "b" * 1000)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", ""])
def test_what_is_no_json_is_a_value_error_at_any_depth(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)
