"""ONNX files with int8 weights and maps, calibrated on images and judged by their classes."""

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np

from aa_flax.data.pixels import center_image, normalise
from aa_flax.data.unlabelled import Given, Pictures, is_pictures
from aa_flax.errors import InputError
from aa_flax.export.onnx_file import INPUT, open_onnx
from aa_flax.export.program import Program
from aa_flax.files import local_path

LEAST_AGREEMENT = 0.99  # of the classes; a file below is not kept unless less is requested
LEAST_IMAGES = 200  # so that one of the compared half counts 1 %
_BATCH = 8
_QUANTISED = ["Conv", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Add", "Concat"]


def pictures_for_int8(images: Any, program: Program, path: Path) -> Pictures:
    """Returns the images that a file is calibrated and compared on, or refuses them."""
    if path.suffix != ".onnx":
        raise InputError(f"int8 is an option of ONNX, and {path.name} is not; give an output .onnx")
    if find_spec("onnxruntime") is None:
        raise InputError(f"writing {path.name} in int8 needs onnxruntime: pip install onnxruntime")
    if program.model.num_classes == 0:
        raise InputError(
            f"int8 is judged by the classes that a model predicts, and {program.name} has none "
            "(num_classes=0); export it without"
        )
    if not is_pictures(images):
        raise InputError(
            "int8 must be a folder of images, or images (paths, PIL or uint8 (N, H, W, 3)); got "
            f"{images!r:.80}"
        )
    given = local_path(images, "int8") if isinstance(images, str | Path) else Given(images)
    pictures = Pictures(given, "int8")
    if len(pictures) < LEAST_IMAGES:
        raise InputError(
            f"int8 needs {LEAST_IMAGES} images or more, half to calibrate on and half to compare "
            f"on, got {len(pictures)}; give more, like those that the model will see"
        )
    config = program.model.config
    if 0 < config.resize_size < program.size:
        raise InputError(
            f"int8 resizes images to {config.resize_size} pixels as model.config says, fewer than "
            f"the {program.size} to export for; change resize_size there (dataclasses.replace)"
        )
    return pictures


def quantise(
    program: Program, path: Path, pictures: Pictures, least: float = LEAST_AGREEMENT
) -> dict[str, Any]:
    """Quantizes a file of ONNX to int8 in place, calibrated on every second image.

    Maps are uint8, weights int8 of 7 bits with a scale per channel, so that products do not
    saturate on any processor. The last layer stays in float32, and with it the logits' range.

    Returns:
        The fraction of the other images to which both files give the same class as `agreement`, the
        numbers of images, where they are from, and the `min_agreement` that was requested.

    Raises:
        InputError: an agreement below `least`, or an image that cannot be read.
    """
    calibrated, compared = range(0, len(pictures), 2), range(1, len(pictures), 2)
    with TemporaryDirectory() as folder:
        written = Path(folder) / "int8.onnx"
        _quantise(path, written, _batches(program, pictures, calibrated))
        agreement = _agreement(path, written, _batches(program, pictures, compared))
        facts = {
            "agreement": agreement,
            "min_agreement": least,
            "compared_on": len(compared),
            "calibrated_on": len(calibrated),
            **pictures.described(),
            "lost": pictures.log_lost(),
        }
        if agreement < least:
            raise InputError(
                f"in int8 {program.name} gives only {100 * agreement:.1f} % of {len(compared)} "
                f"images the class that it gave them before, less than {100 * least:g} %, and was "
                "not kept; give more images, or ones that look like what it was trained on, accept "
                "it by int8_min_agreement (for example --int8-min-agreement 0.95), or export it "
                "without int8"
            )
        _finish(written, path, facts)
    return facts


def _batches(program: Program, pictures: Pictures, which: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields images as the file takes them, a few at a time."""
    config = program.model.config
    for start in range(0, len(which), _BATCH):
        images = (pictures[i]["image"] for i in which[start : start + _BATCH])
        sizes = (config.resize_size, program.size, config.interpolation)
        pixels = np.stack([center_image(image, *sizes) for image in images])
        if not program.preprocessing:
            pixels = normalise(jnp.asarray(pixels), config.mean, config.std)
        yield np.asarray(pixels)


def _quantise(path: Path, written: Path, batches: Iterator[np.ndarray]) -> None:
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            images = next(batches, None)
            return None if images is None else {INPUT: images}

    model = onnx.load(path)
    # quantize_static warns without this mark: shapes are known, and nothing is left to fold.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantization.quantize_static(
        onnx.shape_inference.infer_shapes(model),
        written,
        Reader(),
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=_QUANTISED,
        nodes_to_exclude=_kept(model.graph),
    )


def _kept(graph: Any) -> list[str]:
    """Returns names of nodes that stay in float32: the last layer, and the normalization."""
    constants = {array.name for array in graph.initializer}
    last = [node.name for node in graph.node if node.op_type == "Gemm"][-1:]
    sums = (node for node in graph.node if node.op_type == "Add")
    return last + [node.name for node in sums if constants.intersection(node.input)]


def _agreement(path: Path, written: Path, batches: Iterator[np.ndarray]) -> float:
    before, after = open_onnx(path), open_onnx(written)
    same = [before(x).argmax(-1) == after(x).argmax(-1) for x in batches]
    return float(np.concatenate(same).mean())


def _finish(written: Path, path: Path, facts: dict[str, Any]) -> None:
    """Saves the file with the metadata that it had before it was quantized, and these."""
    import onnx

    before = {fact.key: fact.value for fact in onnx.load(path).metadata_props}
    model = onnx.load(written)
    onnx.helper.set_model_props(model, {**before, "int8": json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
