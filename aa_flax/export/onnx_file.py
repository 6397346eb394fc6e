"""A model as a file of ONNX, for a process that has neither JAX nor Python.

The operators are few, since batch norms are folded and operations are traced as their definitions;
what depends on constants alone is computed here.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from aa_flax.errors import InputError
from aa_flax.export.onnx_graph import Graph, Tensor, Value, refuse, simplified, written
from aa_flax.export.onnx_rules import rule
from aa_flax.export.program import Program, bound_to_one_size
from aa_flax.models.shapes import smallest_size
from aa_flax.ops import definitions
from aa_flax.transform.jaxpr import bind, evaluate, opened

PACKAGES, RUNTIME = ("onnx",), "onnxruntime"
OPSET, IR_VERSION = 19, 9  # of ONNX 1.14, 2023: supported by the runtimes in use
INPUT, _INSIDE = "images", "images_channels_first"
_IDENTITIES = ("optimization_barrier", "name", "copy", "copy_p", "sharding_constraint")


def write(program: Program, path: Path) -> None:
    """Writes a model as ONNX, for batches of any size, and has ONNX check the file."""
    import onnx

    size = program.size
    found = _converted(program, 2, size, size)
    # JAX traces sizes as numbers. A graph that is the same for other sizes depends on none.
    if not found.graph.equals(_converted(program, 3, size, size).graph):
        raise refuse(f"{program.name}, whose program depends on the number of images")
    if program.open_size:
        least = smallest_open_size(program)
        # Odd and even ones; the last differ by more than a stride, which shows in pools into a
        # fixed number of bins.
        for sides in ((least, least + 3), (size + 1, size + 2), (2 * size, 3 * size + 1)):
            if not found.graph.equals(_converted(program, 2, *sides).graph):
                raise bound_to_one_size(program.name)
    if program.output == "probabilities":
        found = found._replace(result=found.graph.add("Softmax", found.result, axis=-1))
    model = _model_proto(program, found)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class _Converted(NamedTuple):
    graph: Graph
    result: str
    shape: tuple


def _converted(program: Program, count: int, height: int, width: int) -> _Converted:
    images = program.images(count, height, width)
    with definitions():
        traced = jax.make_jaxpr(program.logits)(images)
    graph = Graph()
    (result,) = _run(graph, traced, [Tensor(_INSIDE, tuple(images.shape), images.dtype)])
    last = written(result, graph)
    return _Converted(simplified(graph, last.name), last.name, last.shape)


def _run(graph: Graph, closed_jaxpr: Any, arguments: list[Value]) -> list[Value]:
    jaxpr, consts = opened(closed_jaxpr)
    return evaluate(jaxpr, list(map(np.asarray, consts)), arguments, partial(_results, graph))


def _results(graph: Graph, eqn: Any, operands: list[Any]) -> list[Value]:
    operands = [x if isinstance(x, Value) else np.asarray(x) for x in operands]  # literals
    name, params = eqn.primitive.name, eqn.params
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if params.get(key):
            return _run(graph, params[key], operands)
    if name in _IDENTITIES:
        return operands
    shape = tuple(eqn.outvars[0].aval.shape)
    if 0 in shape:  # what padding by no pixels adds
        return [np.zeros(shape, np.float32)]
    if all(isinstance(value, np.ndarray) for value in operands):
        if name != "broadcast_in_dim":
            return [np.asarray(x) for x in bind(eqn, operands)]
        # Repeated without a copy, so that `compact` finds the constant that was repeated.
        sizes = [1] * len(shape)
        for axis, size in zip(params["broadcast_dimensions"], operands[0].shape, strict=True):
            sizes[axis] = size
        return [np.broadcast_to(operands[0].reshape(sizes), shape)]
    result = rule.apply(name, graph, shape, params, *operands)
    if result is None:
        raise InputError(
            f"ONNX has no operator for {name}, which this model computes (its pool, perhaps); "
            "export it as .stablehlo"
        )
    return [result]


def smallest_open_size(program: Program) -> int:
    """Returns the smallest side of images that a graph of open sizes takes."""
    return smallest_size(program.model) or program.size


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """Runs the file in onnxruntime."""
    return open_onnx(path)(images)


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the file as a function, in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others compute, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


def _model_proto(program: Program, found: _Converted) -> Any:
    from onnx import helper, numpy_helper

    constants = []
    nodes = [helper.make_node("Transpose", [INPUT], [_INSIDE], name=_INSIDE, perm=[0, 3, 1, 2])]
    names = {found.result: program.output}
    for node in found.graph.nodes:
        inputs = []
        for number, given in enumerate(node.inputs):
            if isinstance(given, np.ndarray):
                name = f"{node.output}.{number}"
                constants.append(numpy_helper.from_array(np.asarray(given), name))
                given = name
            inputs.append(names.get(given, given))
        output = names.get(node.output, node.output)
        node = helper.make_node(node.operator, inputs, [output], name=output, **node.attributes)
        nodes.append(node)
    metadata, kind = program.metadata(), helper.np_dtype_to_tensor_dtype(program.dtype)
    given = helper.make_tensor_value_info(INPUT, kind, metadata["input"]["shape"])
    result = helper.make_tensor_value_info(program.output, 1, ["batch", *found.shape[1:]])
    graph = helper.make_graph(nodes, program.name, [given], [result], constants)
    versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
    model = helper.make_model(graph, producer_name="aa_flax", **versions)
    facts = metadata.items()
    facts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts}
    helper.set_model_props(model, facts)
    return model
