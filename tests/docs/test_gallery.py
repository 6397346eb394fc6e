"""The gallery shows the outputs of its program."""

import re
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def gallery():
    pytest.importorskip("matplotlib")
    return runpy.run_path(str(ROOT / "docs/gallery.py"))


class Corner(nnx.Module):
    """Returns logits that depend only on the corner pixel."""

    def __call__(self, images):
        return images[:, 0, 0] * jnp.array([3.0, -1.0, 2.0])


def test_an_animation_has_a_frame_for_each_view_and_the_models_probabilities(
    gallery, tmp_path, rng
):
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    offsets = gallery["around_a_square"](2)
    views = gallery["crops"](image, offsets, 12)
    (found,) = gallery["probabilities"](Corner(), [views])
    path = tmp_path / "corner.webp"
    figure = gallery["animate_trace"](path, views, {"corner": found}, 2, ["a", "b", "c"])
    with Image.open(path) as animation:
        assert animation.n_frames == len(offsets) == 8
    corners = (np.array([image[i, j] for i, j in offsets]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    exponents = np.exp(corners * [3, -1, 2])
    drawn = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, exponents[:, 2] / exponents.sum(1), rtol=1e-4)


def test_an_image_moves_by_one_pixel_at_every_step(gallery):
    offsets = gallery["around_a_square"](3)
    steps = np.roll(offsets, -1, 0) - offsets
    assert (abs(steps).sum(1) == 1).all()
    assert len({tuple(offset) for offset in offsets}) == len(offsets) == 12


def test_the_table_counts_changes_between_neighbouring_views(gallery):
    found = np.array([[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]])
    table = gallery["table_of_steps"]({"m": found}, np.array([0]))
    assert table.splitlines()[-1] == "| m | 66.7 | 40.0 | 100.0 |"


def test_the_pictures_of_the_page_are_those_of_its_program_and_small(gallery):
    page, folder = (ROOT / "docs/gallery.md").read_text(), ROOT / "docs/gallery"
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(re.findall(r"\(gallery/(.+?)\)", page)) == set(there)
    assert max(there.values()) < 1_000_000
    assert "(docs/gallery/digit.webp)" in (ROOT / "README.md").read_text()


def test_the_page_is_one_file_with_all_pictures_and_tables(gallery, tmp_path):
    pytest.importorskip("markdown")
    gallery["write_page"](tmp_path / "gallery.html")
    page = (tmp_path / "gallery.html").read_text()
    sources = re.findall(r'src="(.*?)"', page)
    assert len(sources) == (ROOT / "docs/gallery.md").read_text().count("![")
    assert all(source.startswith("data:image/") for source in sources)
    assert page.count("<table>") == 2
    assert "href" not in page
    assert "](" not in page
