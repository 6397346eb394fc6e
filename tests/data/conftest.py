import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photos import originals


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    """Keeps indexes of the tests' folders out of the user's cache."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def make_tree(tmp_path) -> Callable[..., Path]:
    """Writes small images: `make_tree("train/a/1.png", "val/b/2.jpg", ...)` -> the folder."""

    def make(*names: str) -> Path:
        for i, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (i, 2 * i, 255 - i)).save(path)
        return tmp_path

    return make


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def odd_files() -> dict[str, bytes]:
    """Returns image files of every kind that a data set may contain, by name."""
    photo = originals()["chelsea"].crop((37, 20, 370, 271))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: a quarter turn
    palette = photo.quantize(60)
    grey = photo.convert("L")
    sixteen_bit = Image.fromarray(np.asarray(grey).astype(np.uint16) * 150)
    alpha = photo.copy()
    alpha.putalpha(grey)
    return {
        "420.jpg": _encoded(photo, "JPEG", subsampling=2),
        "422.jpg": _encoded(photo, "JPEG", subsampling=1),
        "444.JPEG": _encoded(photo, "JPEG", subsampling=0, quality=98),
        "progressive.jpg": _encoded(photo, "JPEG", progressive=True, quality=40),
        "restart.jpg": _encoded(photo, "JPEG", restart_marker_rows=1),
        "rgb.jpg": _encoded(photo, "JPEG", keep_rgb=True),
        "grey.jpg": _encoded(grey, "JPEG"),
        "cmyk.jpg": _encoded(photo.convert("CMYK"), "JPEG"),
        "rotated.jpg": _encoded(photo, "JPEG", exif=rotated),
        "no_end.jpg": _encoded(photo, "JPEG") + b"trailing bytes",
        "png.JPEG": _encoded(photo, "PNG"),
        "rgba.png": _encoded(alpha, "PNG"),
        "la.png": _encoded(alpha.convert("LA"), "PNG"),
        "palette.png": _encoded(palette, "PNG"),
        "clear_palette.png": _encoded(palette, "PNG", transparency=3),
        "bilevel.png": _encoded(photo.convert("1"), "PNG"),
        "sixteen_bit.png": _encoded(sixteen_bit, "PNG"),
        "sixteen_bit.tif": _encoded(sixteen_bit, "TIFF"),
        "plain.bmp": _encoded(photo, "BMP"),
        "grey.pgm": _encoded(grey, "PPM"),
        "lossy.webp": _encoded(photo, "WEBP"),
        "alpha.webp": _encoded(alpha, "WEBP", lossless=True),
        "one_wide.png": _encoded(photo.resize((1, 40)), "PNG"),
        "one_high.png": _encoded(photo.resize((40, 1)), "PNG"),
        "one_pixel.jpg": _encoded(photo.resize((1, 1)), "JPEG"),
        "small.jpg": _encoded(photo.resize((31, 20)), "JPEG"),
        "long.jpg": _encoded(photo.resize((900, 13)), "JPEG"),
        "high.jpg": _encoded(photo.resize((13, 900)), "JPEG"),
        "square.jpg": _encoded(photo.resize((256, 256)), "JPEG"),
    }
