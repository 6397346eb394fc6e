"""`export`: writes a model or a function as a file, and compares both before it is kept."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from aa_flax.errors import InputError, boolean, fraction, integer
from aa_flax.export import functions, onnx_file, stablehlo
from aa_flax.export.int8 import LEAST_AGREEMENT, pictures_for_int8, quantise
from aa_flax.export.program import Program, program_of
from aa_flax.files import check_writable, local_path, replacing, writing
from aa_flax.models.classifier import Classifier

TOLERANCE = 1e-5  # of the largest value

# A format is a module with `write`, `run`, `smallest_open_size`, and the PACKAGES to write it and
# the RUNTIME to run it that have to be installed.
_FORMATS: dict[str, ModuleType] = {".onnx": onnx_file, ".stablehlo": stablehlo}


class Exported(NamedTuple):
    """A file that `export` has written.

    Attributes:
        path: of the file.
        difference: the largest difference between its output (with `int8` that before it was
            quantized) and the model's, over the largest value; None: onnxruntime is missing.
        metadata: facts about the model; in a file of ONNX its `metadata_props`, next to one of
            StableHLO `PATH.json`.
        agreement: with `int8`, the fraction of the images kept for comparison to which it gives the
            model's class.
    """

    path: Path
    difference: float | None
    metadata: dict[str, Any]
    agreement: float | None = None


def export(
    model: Classifier | Callable[..., Any],
    path: str | Path,
    example_inputs: Any = None,
    *,
    size: int | None = None,
    dynamic_size: bool = False,
    preprocessing: bool = False,
    int8: Any = None,
    int8_min_agreement: float = LEAST_AGREEMENT,
) -> Exported:
    """Writes a model or a function as ONNX or StableHLO, to run without this package.

    Batch norms are folded (`aa_flax.fuse`), and every operation is its definition, a blur one pad
    and one grouped convolution. The file takes batches of any number of images `(N, H, W, 3)`.
    Before it is kept it is compared with the model, on random images: in onnxruntime, if that is
    installed, or read back by `jax.export`.

    Args:
        model: a model in evaluation mode, computing in float32; or, with `example_inputs`, any
            function that JAX can trace, e.g. a result of `aa_flax.antialias`.
        path: the file, `.onnx` or `.stablehlo`, written atomically.
        example_inputs: of a function: its argument, or a tuple of several; arrays or
            `jax.ShapeDtypeStruct`s of them in any pytrees, whose first axis is the batch, left open
            in the file. Parameters are bound to the function: `lambda x: f(params, x)`. Inputs and
            outputs have the names of the function's parameters and of the paths in its trees, a
            single output is `output`. All options below are those of a model.
        size: side of the images, in pixels; default: that of `model.config`.
        dynamic_size: height and width are left open, too. Not those of AlexNet and VGG, whose
            classifiers pool into a fixed number of bins.
        preprocessing: the file takes uint8 images, normalizes them as `model.config` says, and
            returns probabilities; else it takes normalized floats and returns logits.
        int8: images like those that the model will see, a folder of them or whatever
            `aa_flax.preprocess` takes, resized and cropped as `model.config` says: a file of ONNX
            then computes with int8, calibrated on every second image and compared on the others.
            The input is the same as without.
        int8_min_agreement: fraction of those images that have to keep their class, else the file is
            refused; it is recorded in the file's metadata.

    Raises:
        InputError: another suffix, a path that cannot be written, a missing package, not a model or
            one in training mode, images that are too small, a size that cannot be left open, an
            operation that ONNX has no operator for, or a file that computes something else; with
            `int8` fewer than 200 images, or a file that gives too many of them another class.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.1)
        >>> exported = aa_flax.export(model, "mine.stablehlo", size=32)
        >>> exported.path.name, exported.difference < 1e-5
        ('mine.stablehlo', True)
    """
    if example_inputs is not None:
        others = (size, dynamic_size, preprocessing, int8_min_agreement)
        if int8 is not None or others != (None, False, False, LEAST_AGREEMENT):
            raise InputError(
                "size, dynamic_size, preprocessing, int8 and int8_min_agreement are options of a "
                "model; leave them out with example_inputs"
            )
        return _export_function(model, path, example_inputs)
    path, file_format = check_output(path)
    program = program_of(
        model,
        None if size is None else integer("size", size, least=1),
        open_size=boolean("dynamic_size", dynamic_size),
        preprocessing=boolean("preprocessing", preprocessing),
    )
    least = fraction("int8_min_agreement", int8_min_agreement)
    if int8 is None and least != LEAST_AGREEMENT:
        raise InputError("int8_min_agreement needs int8; give a folder of images as int8, too")
    pictures = None if int8 is None else pictures_for_int8(int8, program, path)
    metadata, agreement = program.metadata(), None
    try:
        with replacing(path) as temporary:
            file_format.write(program, temporary)
            difference = _difference(program, temporary, file_format)
            if pictures is not None:
                metadata["int8"] = quantise(program, temporary, pictures, least)
                agreement = metadata["int8"]["agreement"]
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    if path.suffix == ".stablehlo":
        _write_metadata(path, metadata)
    return Exported(path, difference, metadata, agreement)


def _export_function(f: Any, path: str | Path, example_inputs: Any) -> Exported:
    path, _ = check_output(path)
    if not callable(f):
        raise InputError(f"export takes a model or a function, got a {type(f).__name__}")
    arguments = example_inputs if type(example_inputs) is tuple else (example_inputs,)
    function = functions.Function(f, arguments)
    write = functions.write_onnx if path.suffix == ".onnx" else functions.write_stablehlo
    with writing(path), replacing(path) as temporary:
        metadata = write(function, temporary)
        found = functions.difference(function, temporary, path.suffix)
        if found is not None and not found <= TOLERANCE:
            raise InputError(
                f"the file differs from the function by {found:.1e} of its largest value, more "
                f"than {TOLERANCE}, and was not kept"
            )
    if path.suffix == ".stablehlo":
        _write_metadata(path, metadata)
    return Exported(path, found, metadata)


def _write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    with replacing(path.with_name(f"{path.name}.json")) as temporary:
        temporary.write_text(json.dumps(metadata, indent=2) + "\n")


def check_output(path: str | Path) -> tuple[Path, ModuleType]:
    """Returns the file to write and its format, if this installation can write it."""
    path = local_path(path, "the output")
    if path.suffix not in _FORMATS:
        raise InputError(f"the output {path} must end in .onnx or .stablehlo")
    check_writable(path)
    file_format = _FORMATS[path.suffix]
    if missing := [name for name in file_format.PACKAGES if find_spec(name) is None]:
        raise InputError(
            f"writing {path.name} needs {' and '.join(missing)}: pip install 'aa_flax[export]'"
        )
    return path, file_format


def _difference(program: Program, path: Path, file_format: ModuleType) -> float | None:
    """Returns the largest difference, over the largest value; None without the runtime."""
    if find_spec(file_format.RUNTIME) is None:
        return None
    sizes = [(2, program.size, program.size)]
    if program.open_size:
        least = file_format.smallest_open_size(program)
        size = max(program.size, least)
        sizes = [(2, size, size), (1, least, least + 3)]
    found = 0.0
    for count, height, width in sizes:
        images = program.random_images(count, height, width)
        given, expected = file_format.run(path, images), program.expected(images)
        largest = max(np.abs(expected).max(), np.finfo(np.float32).tiny)  # of zeros, too
        found = max(found, float(np.abs(given - expected).max() / largest))
        if not found <= TOLERANCE:  # or NaN
            raise InputError(
                f"the file differs from {program.name} by {found:.1e} of its largest "
                f"{program.output}, more than {TOLERANCE}, on images of {height}x{width} pixels, "
                "and was not kept"
            )
    return found
