"""A net as a file of ONNX, for a process that has neither JAX nor Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.export.convert import Converted, converted
from aa_flax.export.program import Program
from aa_flax.export.stablehlo import bound_to_one_size
from aa_flax.export.values import refuse
from aa_flax.models.shapes import smallest_size
from aa_flax.ops import definitions

OPSET, IR_VERSION = 19, 9  # of ONNX 1.14, 2023: what runtimes in use take
INPUT, _INSIDE = "images", "images_channels_first"


def write_onnx(program: Program, path: Path) -> None:
    """Writes the net as ONNX, for a batch of any size, and has ONNX check it.

    Raises:
        InputError: operations that ONNX has no operator for, or sizes that were to be open and
            cannot be.
    """
    import onnx

    size = program.size
    found = _converted(program, 2, size, size)
    if not found.graph.equals(_converted(program, 3, size, size).graph):
        raise refuse(f"{program.name}, whose program depends on the number of images")
    for height, width in _other_sizes(program):
        if not found.graph.equals(_converted(program, 2, height, width).graph):
            raise bound_to_one_size(program.name)
    if program.output == "probabilities":
        name = found.graph.add("Softmax", found.result, axis=-1)
        found = found._replace(result=name)
    model = _model_proto(program, found)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _converted(program: Program, count: int, height: int, width: int) -> Converted:
    with definitions():
        return converted(program.logits, program.images(count, height, width), _INSIDE)


def _other_sizes(program: Program) -> list[tuple[int, int]]:
    """Odd ones and even ones: where a graph is that of all of these, it depends on none.

    The last differ by more than a stride, so that pools into a fixed number of bins show.
    """
    if not program.open_size:
        return []
    least, size = smallest_open_size(program), program.size
    return [(least, least + 3), (size + 1, size + 2), (2 * size, 3 * size + 1)]


def smallest_open_size(program: Program) -> int:
    """From which side on the graph takes images of every size."""
    return smallest_size(program.model) or program.size


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """What the file gives in onnxruntime."""
    return open_onnx(path)(images)


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file as a function, in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others compute, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


def _model_proto(program: Program, found: Converted) -> Any:
    from onnx import helper

    constants: dict[str, np.ndarray] = {}
    nodes = [helper.make_node("Transpose", [INPUT], [_INSIDE], name=_INSIDE, perm=[0, 3, 1, 2])]
    names = {found.result: program.output}
    for node in found.graph.nodes:
        inputs = []
        for number, given in enumerate(node.inputs):
            if isinstance(given, np.ndarray):
                constants[name := f"{node.output}.{number}"] = given
                given = name
            inputs.append(names.get(given, given))
        output = names.get(node.output, node.output)
        nodes.append(
            helper.make_node(node.operator, inputs, [output], name=output, **node.attributes)
        )
    side = ("height", "width") if program.open_size else (program.size,) * 2
    shapes = {
        INPUT: (helper.np_dtype_to_tensor_dtype(program.dtype), program.images("batch", *side)),
        program.output: (1, ("batch", *found.shape[1:])),
    }
    return _packed(program, nodes, constants, shapes)


def _packed(program: Program, nodes: list, constants: dict, shapes: dict) -> Any:
    from onnx import helper, numpy_helper

    given, result = (
        helper.make_tensor_value_info(name, kind, list(getattr(shape, "shape", shape)))
        for name, (kind, shape) in shapes.items()
    )
    arrays = [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()]
    graph = helper.make_graph(nodes, program.name, [given], [result], arrays)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph, opset_imports=opset, producer_name="aa_flax", ir_version=IR_VERSION
    )
    told = program.metadata().items()
    helper.set_model_props(
        model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in told}
    )
    return model
