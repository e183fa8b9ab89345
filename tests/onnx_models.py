"""Small ONNX models for tests."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sigbit.onnx_reader import read_onnx

#: Channels, rows and columns of a small input.
MAP = ("N", 3, 9, 8)


def build(nodes, constants, shape=MAP, opset=17, inputs=(), outputs=("y",)):
    """Model with input ``x`` and output ``y``; nodes are ``(operator, inputs, outputs, attributes)``."""
    proto = [
        helper.make_node(kind, sources, results, name=f"n{index}", **attributes)
        for index, (kind, sources, results, attributes) in enumerate(nodes)
    ]
    return helper.make_model(
        helper.make_graph(
            proto,
            "test",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", shape), *inputs)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8 if opset < 20 else 10,
    )


def read(model, folder):
    path = Path(folder) / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return read_onnx(path)


def one(kind, inputs="x", **attributes):
    """The nodes of a model of one operator."""
    return [(kind, inputs.split(), ["y"], attributes)]
