"""A model as a file of ONNX, for a process that has neither JAX nor Python.

The operators are few, since batch norms are folded and operations are traced as their definitions;
what depends on constants alone is computed here.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aa_flax.errors import InputError, first_line
from aa_flax.export.onnx_graph import Graph, Node
from aa_flax.export.onnx_program import converted
from aa_flax.export.onnx_values import COUNT, Open, Tensor, sizes
from aa_flax.export.program import Program, bound_to_one_size
from aa_flax.models.shapes import smallest_size
from aa_flax.ops import definitions

PACKAGES, RUNTIME = ("onnx",), "onnxruntime"
OPSET, IR_VERSION = 19, 9  # of ONNX 1.14, 2023: supported by the runtimes in use
INPUT, _INSIDE = "images", "images_channels_first"
CHANNELS_FIRST = (0, 3, 1, 2)  # axes of images, in the order of the graph


def write(program: Program, path: Path) -> None:
    """Writes a model as ONNX, for batches of any size, and has ONNX check the file."""
    size = program.size
    found = _converted(program, size, size)
    if program.open_size:
        least = smallest_open_size(program)
        # Odd and even ones; the last differ by more than a stride, which shows in pools into a
        # fixed number of bins.
        for sides in ((least, least + 3), (size + 1, size + 2), (2 * size, 3 * size + 1)):
            if not found[0].equals(_converted(program, *sides)[0]):
                raise bound_to_one_size(program.name)
    graph, (result,) = found
    if program.output == "probabilities":
        result = replace(result, name=graph.add("Softmax", result.name, axis=-1))
    graph.nodes.insert(0, Node("Transpose", [INPUT], _INSIDE, {"perm": [*CHANNELS_FIRST]}))
    metadata = program.metadata()
    shape = metadata["input"]["shape"]
    save(graph, {INPUT: (program.dtype, shape)}, {program.output: result}, path, metadata)


def _converted(program: Program, *sides: int) -> tuple[Graph, list[Tensor]]:
    def trace(count: int) -> Any:
        with definitions():
            return jax.make_jaxpr(program.logits)(program.images(count, *sides))

    def inputs(count: int) -> list[Tensor]:
        shape = program.images(Open(count, 1), *sides).shape
        return [Tensor(_INSIDE, shape, program.dtype, CHANNELS_FIRST)]

    return converted(trace, inputs)


def smallest_open_size(program: Program) -> int:
    """Returns the smallest side of images that a graph of open sizes takes."""
    return smallest_size(program.model) or program.size


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """Runs the file in onnxruntime."""
    return open_onnx(path)(images)


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a model's file as a function, in onnxruntime."""
    session = session_of(path)
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


def session_of(path: Path) -> Any:
    """Opens a file in onnxruntime."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    # Other processes compute as well.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        raise InputError(
            f"onnxruntime lacks an operator for these numbers: {first_line(error)}; compute in "
            "float32, or export as .stablehlo"
        ) from error


def save(
    graph: Graph,
    inputs: dict[str, tuple[np.dtype, list[int | str]]],
    outputs: dict[str, Tensor],
    path: Path,
    metadata: dict[str, Any],
) -> None:
    """Writes a graph with inputs of these types and sizes, and has ONNX check the file."""
    import onnx
    from onnx import helper

    nodes, constants = _protos(graph, inputs, outputs)
    kind = helper.np_dtype_to_tensor_dtype
    given = [
        helper.make_tensor_value_info(key, kind(np.dtype(dtype)), shape)
        for key, (dtype, shape) in inputs.items()
    ]
    results = [
        helper.make_tensor_value_info(key, kind(np.dtype(x.dtype)), sizes(x.shape))
        for key, x in outputs.items()
    ]
    name = str(metadata.get("model") or metadata.get("function") or "this model")
    proto = helper.make_graph(nodes, name, given, results, constants)
    versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
    model = helper.make_model(proto, producer_name="aa_flax", **versions)
    facts = metadata.items()
    facts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts}
    helper.set_model_props(model, facts)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            f"ONNX does not define what {name} computes: {first_line(error)}; export it as "
            ".stablehlo"
        ) from error
    onnx.save(model, path)


def _protos(
    graph: Graph, inputs: Iterable[str], outputs: dict[str, Tensor]
) -> tuple[list[Any], list[Any]]:
    """Returns nodes and constants, results by their names, which no other array has."""
    from onnx import helper, numpy_helper

    nodes, names = list(graph.nodes), {name: name for name in inputs}
    taken = {*names, *outputs}
    if any(isinstance(x, str) and x == COUNT for node in nodes for x in node.inputs):
        first = next(iter(inputs))
        nodes.insert(0, Node("Shape", [first], COUNT, {"start": 0, "end": 1}))
    for name, x in outputs.items():
        if x.name in names:  # an input, or the result of another name
            nodes.append(Node("Identity", [x.name], name, {}))
            names[name] = name
        else:
            names[x.name] = name
    for node in nodes:
        if node.output not in names:
            names[node.output] = node.output + "_" * (node.output in taken)
    written, constants = [], []
    for node in nodes:
        arguments = []
        for number, given in enumerate(node.inputs):
            if isinstance(given, np.ndarray):
                constants.append(numpy_helper.from_array(given, f"{names[node.output]}.{number}"))
                arguments.append(constants[-1].name)
            else:
                arguments.append(names[given])
        output = names[node.output]
        written.append(
            helper.make_node(node.operator, arguments, [output], name=output, **node.attributes)
        )
    return written, constants
