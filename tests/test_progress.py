"""Progress bars are drawn on a terminal, and not into pipes and logs."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
from PIL import Image

import aa_flax
from aa_flax.data.folder import scan
from aa_flax.runtime import progress_bar

PACKAGE = Path(aa_flax.__file__).parent
DRAW = """
from aa_flax.runtime import progress_bar
with progress_bar(3, "indexing") as bar:
    bar.update(3)
    bar.refresh()
"""


def test_nothing_is_drawn_into_a_pipe(tmp_path, capfd):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a" / "b.png")
    assert scan(tmp_path).classes == ["a"]
    with progress_bar(3, "downloading", "B", unit_scale=True) as bar:
        bar.update(3)
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", DRAW], stderr=theirs, check=True)
    os.write(theirs, b"end")  # so that there is something to read in any case
    said = os.read(ours, 10000).decode()
    os.close(theirs)
    os.close(ours)
    assert "indexing: 100%" in said


def test_every_bar_is_made_in_one_place():
    calls = re.compile(r"\b(?:tqdm|trange)\(")
    found = [p.name for p in PACKAGE.rglob("*.py") if calls.search(p.read_text())]
    assert found == ["runtime.py"]
