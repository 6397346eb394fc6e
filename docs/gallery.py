"""Draws the pictures of docs/gallery.md, one of which is the README's, and writes its tables.

    python docs/gallery.py [--classifier FILE] [--parts aliasing digit photograph masks maps]
        [--html FILE.html]

`aliasing` draws the table of docs/aliasing.md; `digit` trains the two models of the quickstart, or
reads its runs; `photograph` needs the packages of docs/true_weights.md and its MobileNetV2, FILE;
`masks` trains two models of examples/segmentation.py; `maps` needs
the packages and torch, and keeps its values in runs/gallery.json. `--html` writes the page as one
file that contains its pictures, in the style of the HTML report. Needs the extras `plots` and, for
the file, `docs`.
"""

import argparse
import base64
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import aa_flax  # noqa: E402
from aa_flax.configs import digits_resnet18, digits_resnet18_lpf4  # noqa: E402
from aa_flax.data.digits import Digits  # noqa: E402
from aa_flax.data.pixels import center_image, normalise  # noqa: E402
from aa_flax.evaluation.equivariance import EquivarianceMaps  # noqa: E402
from aa_flax.evaluation.plots import plot_equivariance, pyplot  # noqa: E402
from aa_flax.runtime import avoid_wrong_fusions  # noqa: E402
from aa_flax.training.train import train  # noqa: E402
from benchmarks import packaged  # noqa: E402
from examples import segmentation  # noqa: E402

OUTPUT, MEASURED = ROOT / "docs/gallery", ROOT / "docs/measured"
COLOURS = ("#c44e52", "#4c72b0")  # plain and antialiased
CROP, REACH = 224, 32  # pixels: a view of photographs, and its motion, one stride
Views = UInt8[np.ndarray, "T h w 3"]  # images by step of the motion


def crops(image: UInt8[np.ndarray, "H W 3"], offsets: Int[np.ndarray, "T 2"], size: int) -> Views:
    """Cuts the views of an image at offsets (top, left)."""
    return np.stack([image[top : top + size, left : left + size] for top, left in offsets])


def around_a_square(reach: int) -> Int[np.ndarray, "T 2"]:
    """Returns the offsets 0..reach around a square, one pixel a step, without end."""
    side = np.arange(reach)
    rows = np.concatenate([0 * side, side, 0 * side + reach, reach - side])
    return np.stack([rows, np.roll(rows, -reach)], -1)


def probabilities(model: nnx.Module, moving: Iterable[Views]) -> Float[np.ndarray, "N T ..."]:
    """Returns the probabilities of the classes for every view of moving images."""
    model.eval()
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: jax.nn.softmax(nnx.merge(graph, state)(normalise(x))))
    return np.stack([run(state, views) for views in moving])


def of_class(
    found: Float[np.ndarray, "N T classes"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N T"]:
    """Returns the probability of each image's true class."""
    return np.take_along_axis(found, labels[:, None, None], 2)[..., 0]


def table_of_steps(
    models: Mapping[str, Float[np.ndarray, "N T classes"]], labels: Int[np.ndarray, " N"]
) -> str:
    """Returns how much models change when an image moves by a pixel, as Markdown."""
    lines = [
        "| model | true class | change of its probability | change of class |",
        "|---" * 4 + "|",
    ]
    for name, found in models.items():
        right = found.argmax(-1) == labels[:, None]
        moved, changed = abs(np.diff(of_class(found, labels))), np.diff(found.argmax(-1)) != 0
        cells = [f"{100 * values.mean():.1f}" for values in (right, moved, changed)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def animate_trace(
    path: Path,
    views: Views,
    models: Mapping[str, Float[np.ndarray, "T classes"]],
    label: int,
    class_names: Sequence[str],
) -> Any:
    """Writes an animation of a moving image and of the probability that models give its class.

    Returns:
        The figure, as in the last frame.
    """
    figure = pyplot().figure(figsize=(9, 3.6))
    picture = figure.add_axes((0.01, 0.03, 0.376, 0.94), xticks=[], yticks=[])
    trace = figure.add_axes((0.5, 0.17, 0.48, 0.58))
    picture.imshow(views[0])
    markers = []
    for i, (colour, (name, found)) in enumerate(zip(COLOURS, models.items(), strict=False)):
        trace.plot(found[:, label], color=colour, lw=3)
        (marker,) = trace.plot([], [], "o", color=colour, ms=14, clip_on=False, zorder=3)
        style = {"color": colour, "fontsize": 17, "weight": "bold", "va": "top"}
        markers.append((name, found, marker, figure.text(0.5, 0.98 - 0.1 * i, "", **style)))
    trace.set(xlim=(0, len(views) - 1), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    trace.set_xlabel("moved by (pixels)", fontsize=15)
    trace.set_ylabel("probability of\nthe true class", fontsize=15)
    trace.tick_params(labelsize=14)
    trace.grid(alpha=0.3)

    def frames() -> Iterator[Image.Image]:
        for step, view in enumerate(views):
            picture.images[0].set_data(view)
            for name, found, marker, text in markers:
                marker.set_data([step], [found[step, label]])
                text.set_text(f"{name}: {class_names[found[step].argmax()]}")
            yield rendered(figure)

    save_animation(path, frames())
    return figure


def rendered(figure: Any) -> Image.Image:
    """Returns a figure as an image."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def save_animation(path: Path, frames: Iterable[Image.Image]) -> None:
    """Writes a WebP file that repeats, 120 ms a frame."""
    first, *rest = frames
    first.save(path, save_all=True, append_images=rest, duration=120, loop=0, quality=75, method=6)


def draw_traces(
    name: str,
    moving: Sequence[Views],
    labels: Int[np.ndarray, " N"],
    models: Mapping[str, nnx.Module],
    class_names: Sequence[str],
) -> None:
    """Writes the table of all images, and animates the one that changes the first model most."""
    found = {key: probabilities(model, moving) for key, model in models.items()}
    (MEASURED / f"gallery_{name}.txt").write_text(table_of_steps(found, labels))
    changes = abs(np.diff(of_class(next(iter(found.values())), labels))).mean(1)
    i = int(changes.argmax())
    shown = {key: values[i] for key, values in found.items()}
    animate_trace(OUTPUT / f"{name}.webp", moving[i], shown, labels[i], class_names)


def draw_digit(_: Path | None) -> None:
    """Draws a digit that moves around a square, for the two models of the quickstart."""
    digits = Digits("val", 48)
    examples = [digits[i] for i in range(len(digits))]
    moving = [crops(example["image"], around_a_square(8), 40) for example in examples]
    models = {}
    for name, recipe in {"plain": digits_resnet18, "antialiased": digits_resnet18_lpf4}.items():
        config = recipe.get_config()
        train(config, ROOT / "runs" / config.name)
        models[name] = aa_flax.create_model(config.model, pretrained=ROOT / "runs" / config.name)
    labels = np.array([example["label"] for example in examples])
    draw_traces("digit", moving, labels, models, Digits.class_names)


def draw_photograph(classifier: Path) -> None:
    """Draws a photograph that moves right, for MobileNetV2, plain and with filters."""
    pictures, labels = zip(*packaged.photographs(), strict=True)
    images = [center_image(picture, CROP + REACH, CROP + REACH) for picture in pictures]
    lefts = np.arange(REACH, -1, -1)
    offsets = np.stack([np.full_like(lefts, REACH // 2), lefts], -1)
    moving = [crops(image, offsets, CROP) for image in images]
    plain = aa_flax.create_model("mobilenet_v2", pretrained=classifier)
    antialiased = aa_flax.create_model("mobilenet_v2_lpf4")
    nnx.update(antialiased, nnx.state(plain))
    middles = np.stack([views[REACH // 2] for views in moving])
    aa_flax.match_statistics(antialiased, plain, jax.jit(normalise)(middles))
    models = {"plain": plain, "antialiased": antialiased}
    draw_traces("photograph", moving, np.array(labels), models, aa_flax.imagenet_class_names())


def draw_masks(_: Path | None) -> None:
    """Draws the masks of two segmentation models as a scene moves around a square."""
    scenes, _ = segmentation.Scenes(held_out=True, seed=10_000).draw(1)
    views = crops(scenes[0], around_a_square(8) + 4, segmentation.CROP)
    colours = np.array([(0, 0, 0, 1), *pyplot().cm.tab10(range(10))])
    columns = [("scene", "black", views)]
    for colour, name in zip(COLOURS, ("plain", "antialiased_blurred"), strict=False):
        model = segmentation.train(*segmentation.VARIANTS[name], steps=300, seed=0)
        masks = probabilities(model, [views])[0].argmax(-1)
        columns.append((name.replace("_", ", "), colour, colours[masks]))
    figure, panels = pyplot().subplots(1, 3, figsize=(9, 3.3))
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.9, 0.02)
    for panel, (title, colour, images) in zip(panels, columns, strict=True):
        panel.imshow(images[0])
        panel.set(xticks=[], yticks=[])
        panel.set_title(title, fontsize=15, color=colour, weight="bold")

    def frames() -> Iterator[Image.Image]:
        for step in range(len(views)):
            for panel, (_, _, images) in zip(panels, columns, strict=True):
                panel.images[0].set_data(images[step])
            yield rendered(figure)

    save_animation(OUTPUT / "masks.webp", frames())


def draw_aliasing(_: Path | None) -> None:
    """Draws the aliasing energy at each layer that subsamples, from its table."""
    lines = (MEASURED / "aliasing.txt").read_text().splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    models = dict.fromkeys(row[0] for row in rows)
    figure, panels = pyplot().subplots(1, 3, figsize=(10, 3.5), sharex=True, layout="constrained")
    for panel, model in zip(panels, models, strict=True):
        sites = [row for row in rows if row[0] == model]
        for i, name in enumerate(("plain", "antialias(f)")):
            energy = [float(row[3 + i]) for row in sites]
            panel.barh(np.arange(len(sites)) + 0.4 * i, energy, 0.4, color=COLOURS[i], label=name)
        panel.set_yticks(np.arange(len(sites)) + 0.2, [row[2] for row in sites], fontsize=11)
        panel.set_title(model, fontsize=14)
        panel.invert_yaxis()
    panels[1].set_xlabel("aliasing energy (%)", fontsize=13)
    labelled = panels[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside upper center", ncols=2, fontsize=13)
    figure.savefig(OUTPUT / "aliasing.png", dpi=110, metadata={"Software": None})


def draw_maps(_: Path | None) -> None:
    """Draws how far the pools of VGG16 are from moving their maps with the image."""
    # It imports torch, which no other part needs.
    from true_weights import Results, maps_of, measure_maps, opened

    results = Results(ROOT / "runs/gallery.json")
    images = opened(None)[0][:2]
    for name in ("vgg16", "vgg16_lpf4"):
        results.measure("maps", name, lambda name=name: measure_maps(name, images))
    pools = {name: pools_of(maps_of(row)) for name, row in results.found["maps"].items()}
    plot_equivariance(OUTPUT / "vgg16.png", pools)


def pools_of(maps: EquivarianceMaps) -> EquivarianceMaps:
    """Returns the maps of the pools, and that of the pooled features."""
    kept = [i for i, block in enumerate(maps.blocks) if block.startswith("pool")]
    blocks, strides = (tuple(values[i] for i in kept) for values in (maps.blocks, maps.strides))
    return EquivarianceMaps(blocks, strides, maps.maps[kept], maps.scale[kept])


def write_page(path: Path) -> None:
    """Writes the gallery as one HTML file without links to other pages, with its pictures in it."""
    from markdown import markdown

    text = (ROOT / "docs/gallery.md").read_text()
    text = re.sub(r"(?<!!)\[([^]]*)\]\([^)]*\)", r"\1", text)
    title, *sections = re.split(r"^##? ", text, flags=re.MULTILINE)[1:]

    def html(section: str) -> str:
        return re.sub(r'src="([^"]*)"', embedded, markdown(section, extensions=["tables"]))

    body = "\n".join(f"<section>{html('## ' + section)}</section>" for section in sections)
    style = (files("aa_flax.report.html") / "page.css").read_text() + "img { max-width: 100%; }"
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Gallery</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><header>{html('# ' + title)}</header>"
        f"<main>{body}</main></body></html>\n"
    )


def embedded(source: re.Match[str]) -> str:
    """Returns the attribute of an image file as one that contains it."""
    path = ROOT / "docs" / source[1]
    content = base64.b64encode(path.read_bytes()).decode()
    return f'src="data:image/{path.suffix[1:]};base64,{content}"'


PARTS = {
    "aliasing": draw_aliasing,
    "digit": draw_digit,
    "photograph": draw_photograph,
    "masks": draw_masks,
    "maps": draw_maps,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--html", type=Path)
    args = parser.parse_args()
    if args.classifier is None and "photograph" in args.parts:
        parser.error("the photograph needs --classifier FILE; name the other --parts without it")
    avoid_wrong_fusions()
    OUTPUT.mkdir(exist_ok=True)
    for part in args.parts:
        PARTS[part](args.classifier)
        print(f"{part} is drawn", file=sys.stderr, flush=True)
    if args.html:
        write_page(args.html)


if __name__ == "__main__":
    main()
