"""`export`: a net as a file of ONNX or StableHLO, compared with the net before it is kept."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aa_flax.errors import InputError, boolean, fraction, integer
from aa_flax.export import onnx_file, stablehlo
from aa_flax.export.int8 import LEAST_AGREEMENT, pictures_for_int8, quantise
from aa_flax.export.program import Program, program_of
from aa_flax.files import check_writable, local_path, replacing
from aa_flax.models.classifier import Classifier

TOLERANCE = 1e-5  # of the largest value


class Exported(NamedTuple):
    """A file that `export` has written.

    Attributes:
        path: where it is.
        difference: the largest difference of what it gives from what the net gives, over the
            largest value; None: it was not compared, since onnxruntime is missing. With `int8`
            that of the file before it was quantised.
        metadata: what is told with the net; in a file of ONNX its `metadata_props`, beside one of
            StableHLO `PATH.json`.
        agreement: with `int8`, the share of the images kept for comparison to which it gives the
            class that the net gives them; else None.
    """

    path: Path
    difference: float | None
    metadata: dict[str, Any]
    agreement: float | None = None


class _Format(NamedTuple):
    """A format: how it is written and run, and which packages that needs.

    Attributes:
        smallest: side of the images it takes, where their sizes are left open.
    """

    write: Callable[[Program, Path], None]
    run: Callable[[Path, np.ndarray], np.ndarray]
    smallest: Callable[[Program], int]
    packages: tuple[str, ...]
    runtime: str


_FORMATS = {
    ".onnx": _Format(
        onnx_file.write_onnx,
        onnx_file.run_onnx,
        onnx_file.smallest_open_size,
        ("onnx",),
        "onnxruntime",
    ),
    ".stablehlo": _Format(
        stablehlo.write_stablehlo,
        stablehlo.run_stablehlo,
        stablehlo.smallest_open_size,
        ("flatbuffers",),
        "jax",
    ),
}


def export(
    model: Classifier,
    path: str | Path,
    *,
    size: int | None = None,
    dynamic_size: bool = False,
    preprocessing: bool = False,
    int8: Any = None,
    int8_min_agreement: float = LEAST_AGREEMENT,
) -> Exported:
    """Writes a net as ONNX or StableHLO, for inference where this package is not.

    Batch norms are folded (`aa_flax.fuse`), and every operation is its definition, a blur one pad
    and one grouped convolution. The file takes batches of any number of images `(N, H, W, 3)`.
    Before it is kept it is compared with the net, on random images: in onnxruntime, if that is
    installed, or read back by `jax.export`.

    Args:
        model: a net in evaluation mode, computing in float32.
        path: the file, `.onnx` or `.stablehlo`, written atomically.
        size: side of the images, in pixels; default: that of `model.config`.
        dynamic_size: height and width are left open, too. Not AlexNet's and VGG's, whose
            classifiers pool into a fixed number of bins.
        preprocessing: the file takes bytes (uint8), normalises them as `model.config` says, and
            gives probabilities; else it takes normalised floats and gives logits.
        int8: images of the kind that the net will see, a folder of them or whatever
            `aa_flax.preprocess` takes, resized and cropped as `model.config` says: a file of ONNX
            then computes with int8, its ranges taken from every second image, and is compared on
            the others. The input stays as told above.
        int8_min_agreement: fraction of those images that have to keep their class, else the file is
            refused; the file's metadata record it.

    Raises:
        InputError: another suffix, a place that cannot be written, a missing package, no net or one
            in training mode, images that are too small, a size that cannot be left open, an
            operation that ONNX has no operator for, or a file that computes something else; with
            `int8` fewer than 200 images, or a file that gives too many of them another class.
    """
    path, form = check_output(path)
    if size is not None:
        size = integer("size", size, least=1)
    program = program_of(
        model,
        size,
        open_size=boolean("dynamic_size", dynamic_size),
        preprocessing=boolean("preprocessing", preprocessing),
    )
    least = fraction("int8_min_agreement", int8_min_agreement)
    if int8 is None and least != LEAST_AGREEMENT:
        raise InputError("int8_min_agreement is of int8 alone; give int8, a folder of images, too")
    pictures = None if int8 is None else pictures_for_int8(int8, program, path)
    metadata, agreement = program.metadata(), None
    try:
        with replacing(path) as temporary:
            form.write(program, temporary)
            difference = _difference(program, temporary, form)
            if pictures is not None:
                metadata["int8"] = quantise(program, temporary, pictures, least)
                agreement = metadata["int8"]["agreement"]
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    if path.suffix == ".stablehlo":
        with replacing(path.with_name(f"{path.name}.json")) as temporary:
            temporary.write_text(json.dumps(metadata, indent=2) + "\n")
    return Exported(path, difference, metadata, agreement)


def check_output(path: str | Path) -> tuple[Path, _Format]:
    """The file to write and its format, if this installation can write it.

    Raises:
        InputError: another suffix, a place that cannot be written, or a missing package.
    """
    path = local_path(path, "the output")
    if path.suffix not in _FORMATS:
        raise InputError(f"the output {path} is to be .onnx or .stablehlo; call it so")
    check_writable(path)
    form = _FORMATS[path.suffix]
    if missing := [name for name in form.packages if find_spec(name) is None]:
        raise InputError(
            f"writing {path.name} needs {' and '.join(missing)}: pip install 'aa_flax[export]'"
        )
    return path, form


def _difference(program: Program, path: Path, form: _Format) -> float | None:
    """The largest, over the largest value; None: the format's runtime is missing."""
    if find_spec(form.runtime) is None:
        return None
    found = 0.0
    for sizes in _compared_sizes(program, form):
        images = program.random_images(*sizes)
        given, expected = form.run(path, images), program.expected(images)
        largest = max(np.abs(expected).max(), np.finfo(np.float32).tiny)  # of zeros, too
        found = max(found, float(np.abs(given - expected).max() / largest))
        if not found <= TOLERANCE:
            raise InputError(
                f"what was written differs from {program.name} by {found:.1e} of its largest "
                f"{program.output}, more than {TOLERANCE}, on images of {sizes[1]}x{sizes[2]} "
                "pixels, and was not kept"
            )
    return found


def _compared_sizes(program: Program, form: _Format) -> list[tuple[int, int, int]]:
    """Numbers of images, their heights and widths."""
    if not program.open_size:
        return [(2, program.size, program.size)]
    least = form.smallest(program)
    size = max(program.size, least)
    return [(2, size, size), (1, least, least + 3)]
