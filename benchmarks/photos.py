"""Folders of real photographs, crops of those in scikit-image and scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_sample_images

from aa_flax.config import DataConfig

_SKIMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)


def originals() -> dict[str, Image.Image]:
    """Returns sixteen photographs by name, in mode RGB."""
    folder = Path(skimage.__file__).parent / "data"
    photos = {Path(name).stem: Image.open(folder / name).convert("RGB") for name in _SKIMAGE}
    samples = load_sample_images()
    names = (Path(name).stem for name in samples.filenames)
    return photos | {n: Image.fromarray(x) for n, x in zip(names, samples.images, strict=True)}


def write_photos(
    folder: Path,
    count: int,
    sides: tuple[int, int] = (150, 640),
    quality: tuple[int, int] = (60, 97),
) -> Path:
    """Writes `folder/<photograph>/<number>.jpg`: `count` crops of many sizes and qualities.

    Every seventh is grey, every eleventh CMYK, every fifth progressive; chroma is at full or at
    half resolution.

    Args:
        sides: range of the longer side in pixels. quality: range of the JPEG quality.
    """
    rng = np.random.default_rng(0)
    photos = originals()
    names = sorted(photos)
    for i in range(count):
        name = names[i % len(names)]
        photo = _cut(photos[name], sides, rng)
        mode = "L" if i % 7 == 6 else "CMYK" if i % 11 == 10 else "RGB"
        path = folder / name / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.convert(mode).save(
            path,
            quality=int(rng.integers(quality[0], quality[1] + 1)),
            subsampling=int(rng.choice([0, 1, 2])),
            progressive=i % 5 == 4,
        )
    return folder


def photos_data(path: Path, **changes: Any) -> DataConfig:
    """Returns `config.data` for a folder with `train/` or `val/`: ImageNet's sizes, `changes`."""
    return DataConfig(path=str(path), **changes)


def _cut(photo: Image.Image, sides: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    w, h = (int(n * rng.uniform(0.4, 1)) for n in photo.size)
    left, top = (int(rng.integers(n)) for n in (photo.width - w + 1, photo.height - h + 1))
    scale = rng.integers(sides[0], sides[1] + 1) / max(w, h)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return photo.crop((left, top, left + w, top + h)).resize(size, Image.Resampling.LANCZOS)
