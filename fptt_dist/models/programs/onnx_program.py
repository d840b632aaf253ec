"""A network as an ONNX model, for windows of any length: its step, repeated by ONNX's Scan."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fptt_dist.models.programs.step import DYNAMIC, ProgramError, StepProgram, traced_by_torch, tracing

NEEDED = "ONNX needs onnx and onnxscript: pip install -e '.[onnx]'"


def onnx_program(step: StepProgram) -> Any:
    """Return the ONNX model (an onnx.ModelProto), which its checker has accepted.

    Inputs are x (steps, batch, …) and state_0, state_1, …; outputs y (steps, batch, O) and next_state_0, ….

    Raises:
        ProgramError: onnx is not installed, or cannot express the step.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ProgramError(NEEDED) from error
    shapes = ({0: DYNAMIC}, *step.dynamic_state)
    with tracing(), _silent():
        program = traced_by_torch(step.graph, (step.x, *step.state), shapes)
        try:
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:
            said = next((line for line in str(error).splitlines() if "No ONNX function" in line), str(error))
            raise ProgramError(f"ONNX cannot express it: {' '.join(said.split())[:400]}") from error
    assert converted is not None
    model = _repeated(converted.model_proto, len(step.state))
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet what the converter says of operators that are not used here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _repeated(model: Any, states: int) -> Any:
    """Return a model that runs the step `model` over all steps of a window."""
    from onnx import helper

    step = model.graph
    names = {value.name: f"step_{value.name}" for value in (*step.input, *step.output)}
    nodes = [copy.deepcopy(node) for node in step.node]
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    made = {name for node in nodes for name in node.output}
    results = []
    for number, value in enumerate(step.output):
        result = _renamed(value, names[value.name] if names[value.name] in made else f"result_{number}")
        if result.name not in made:  # what goes in comes out
            nodes.append(helper.make_node("Identity", [names[value.name]], [result.name]))
        results.append(result)
    x, *state = (_renamed(value, names[value.name]) for value in step.input)
    body = helper.make_graph(nodes, "step", [*state, x], [*results[1:], results[0]])
    before = [f"state_{number}" for number in range(states)]
    after = [f"next_{name}" for name in before]
    window = helper.make_node("Scan", [*before, "x"], [*after, "y"], num_scan_inputs=1, body=body)
    inputs = [_of_window(step.input[0], "x"), *map(_renamed, step.input[1:], before)]
    outputs = [_of_window(step.output[0], "y"), *map(_renamed, step.output[1:], after)]
    graph = helper.make_graph([window], "network", inputs, outputs, initializer=list(step.initializer))
    return helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        ir_version=model.ir_version,
        producer_name="fptt_dist",
    )


def _renamed(value: Any, name: str) -> Any:
    found = copy.deepcopy(value)
    found.name = name
    for place, dim in enumerate(found.type.tensor_type.shape.dim):
        if dim.dim_param:
            found.type.tensor_type.shape.dim[place].dim_param = "batch"
    return found


def _of_window(value: Any, name: str) -> Any:
    """Return the description of a window's values from that of one step's."""
    from onnx import helper

    found = _renamed(value, name).type.tensor_type
    sizes = [dim.dim_param or dim.dim_value for dim in found.shape.dim]
    return helper.make_tensor_value_info(name, found.elem_type, ["steps", *sizes])
