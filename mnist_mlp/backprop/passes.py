"""Forward and backward through a computational graph, by hand and then by torch.autograd.

Everything loops over the nodes in order (or in reverse), once each, so that depth costs nothing but time.

Where a function has a kink the slope is PyTorch's: 0 for relu at 0, one half to each operand of max and min where they
are equal, and 0 for the exponent of a power of 0.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from mnist_mlp.backprop.expression import FUNCTIONS, ExpressionError, Graph, Node
from mnist_mlp.settings import SettingError

ROUNDING = 2.0**-48  # relative; 16 units in the last place, for what one operation here and its twin in torch round
SMALLEST = sys.float_info.min  # below it a number loses digits


class Operation(NamedTuple):
    """An operation in float64: its value, and its slope by each operand given the operands and the value `u`.

    No slope subtracts nearly equal numbers: each is right to nearly all of its digits wherever it is a normal number.

    Attributes:
        domain: where it has a value.
        torch_terms: what torch's formula of a slope adds up, in absolute values, where that is more than the slope: as
            much of it can be lost to rounding there.
    """

    value: Callable[..., float]
    slopes: tuple[Callable[..., float], ...]
    domain: str = ""
    torch_terms: Callable[..., float] = lambda *_: 0.0


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a >= 0 else math.exp(a) / (1 + math.exp(a))  # neither exponential can overflow


def _half_of_a_tie(difference: float) -> float:
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def _base_slope(a: float, b: float, u: float) -> float:
    """b·a^(b − 1), as b·u/a where u has all digits: b − 1 is rounded, and its power can overflow where b is small."""
    if b == 0:
        return 0.0
    if abs(u) >= SMALLEST:
        return u * b / a if math.isfinite(u * b) else u / a * b
    root = math.pow(abs(a), (b - 1) / 2)  # has all digits where its square has not
    return root * b * root * math.copysign(1, u) * math.copysign(1, a)


def _exponent_slope(a: float, b: float, u: float) -> float:
    return 0.0 if a == 0 and b >= 0 else u * math.log(a)


def _power_terms(a: float, b: float, u: float) -> float:
    """Torch computes b·a^(b − 1): rounding b − 1 changes the power by as much as the power depends on its exponent."""
    try:
        sensitivity = 1 + max(abs(b), 1) * math.hypot(math.log(abs(a)), math.pi * (a < 0)) if a else 1.0
        return abs(b * math.pow(a, b - 1)) * sensitivity
    except (OverflowError, ValueError):
        return math.inf  # no number in torch either


# The derivatives are in any table of them, such as Abramowitz and Stegun, sections 3.3 and 4.1 to 4.5. Those of tanh
# and sigmoid are 1 − u² and u·(1 − u) written without a difference.
OPERATIONS: dict[str, Operation] = {
    "+": Operation(lambda a, b: a + b, (lambda a, b, u: 1.0, lambda a, b, u: 1.0)),
    "-": Operation(lambda a, b: a - b, (lambda a, b, u: 1.0, lambda a, b, u: -1.0)),
    "*": Operation(lambda a, b: a * b, (lambda a, b, u: b, lambda a, b, u: a)),
    "/": Operation(lambda a, b: a / b, (lambda a, b, u: 1 / b, lambda a, b, u: -u / b)),
    "**": Operation(
        math.pow,
        (_base_slope, _exponent_slope),
        "a negative base takes a whole exponent, and a base of 0 none below 0",
        _power_terms,
    ),
    "neg": Operation(lambda a: -a, (lambda a, u: -1.0,)),
    "exp": Operation(math.exp, (lambda a, u: u,)),
    "log": Operation(math.log, (lambda a, u: 1 / a,), "its argument must be above 0"),
    "sqrt": Operation(math.sqrt, (lambda a, u: 0.5 / u,), "its argument must be at least 0"),
    "sin": Operation(math.sin, (lambda a, u: math.cos(a),)),
    "cos": Operation(math.cos, (lambda a, u: -math.sin(a),)),
    "tanh": Operation(
        math.tanh, (lambda a, u: 4 * _sigmoid(2 * a) * _sigmoid(-2 * a),), torch_terms=lambda a, u: 1 + u * u
    ),
    "sigmoid": Operation(_sigmoid, (lambda a, u: u * _sigmoid(-a),), torch_terms=lambda a, u: u + u * u),
    "relu": Operation(lambda a: max(a, 0.0), (lambda a, u: float(a > 0),)),
    "max": Operation(max, (lambda a, b, u: _half_of_a_tie(a - b), lambda a, b, u: _half_of_a_tie(b - a))),
    "min": Operation(min, (lambda a, b, u: _half_of_a_tie(b - a), lambda a, b, u: _half_of_a_tie(a - b))),
}


class Passes(NamedTuple):
    """A graph with its numbers, one entry per node.

    Attributes:
        values: of the forward pass.
        gradients: of the result by each node; None for a constant, and for a node that the result does not depend on.
        slopes: ∂node/∂operand by operand; None where the operand has no gradient.
        bounds: how far torch's gradient may be from this one, by the rounding of every step from the result down
            (a running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, section 3.3).
    """

    graph: Graph
    values: list[float]
    gradients: list[float | None]
    slopes: list[tuple[float | None, ...]]
    bounds: list[float]

    def uses(self) -> list[list[tuple[int, int]]]:
        """For each node the uses through which its gradient comes, as (the node that uses it, which operand it is)."""
        uses: list[list[tuple[int, int]]] = [[] for _ in self.values]
        for index, node in enumerate(self.graph.nodes):
            for slot, operand in enumerate(node.operands):
                if self.slopes[index][slot] is not None:
                    uses[operand].append((index, slot))
        return uses

    def distances(self) -> list[int]:
        """For each node with a gradient the length of its longest path to the result, 0 for the result itself."""
        distances = [0] * len(self.values)
        for index, uses in reversed(list(enumerate(self.uses()))):
            distances[index] = max((distances[user] + 1 for user, _ in uses), default=0)
        return distances

    def inputs(self) -> list[int]:
        """Positions of the inputs, in the order in which the expression names them."""
        return [index for index, node in enumerate(self.graph.nodes) if node.operation == "input"]


def work(graph: Graph, given: Mapping[str, Any]) -> Passes:
    """The forward and the backward pass.

    Args:
        given: each input's value by its name.

    Raises:
        SettingError: a value is missing, is no finite number, or belongs to no input.
        ExpressionError: a node has no value or no slope here, or overflows.
    """
    values = _forward(graph, _inputs(graph, given))
    return _backward(graph, values)


def _inputs(graph: Graph, given: Mapping[str, Any]) -> dict[str, float]:
    inputs = {node.name: node for node in graph.nodes if node.operation == "input"}
    for name, value in given.items():
        if name not in inputs:
            listed = f"its variables are {', '.join(inputs)}" if inputs else "it has no variables"
            raise SettingError(f"values.{name}", value, f"the expression has no variable {name}; {listed}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:  # a whole number may have any length; NaN fails, too
            raise SettingError(f"values.{name}", value, "must be a finite number")
    for name, node in inputs.items():
        if name not in given:
            raise ExpressionError(graph.text, node.place, f"{name} has no value: give it one with values.{name}=NUMBER")
    return {name: float(value) for name, value in given.items()}


def describe(node: Node, graph: Graph) -> str:
    """A node as the sentences of errors name it, such as `v1 = a / b`."""
    operands = [graph.nodes[operand].name for operand in node.operands]
    if node.operation in FUNCTIONS:
        return f"{node.name} = {node.operation}({', '.join(operands)})"
    operands = [f"({operand})" if operand.startswith("-") else operand for operand in operands]
    if node.operation == "neg":
        return f"{node.name} = -{operands[0]}"
    return f"{node.name} = {f' {node.operation} '.join(operands)}"


def _at(node: Node, graph: Graph, values: list[float]) -> str:
    """The values of the operands, ` at a = 1, b = 0`, without constants: the node's description has them."""
    known = {graph.nodes[i].name: values[i] for i in node.operands if graph.nodes[i].operation != "constant"}
    return " at " + ", ".join(f"{name} = {value:.6g}" for name, value in known.items()) if known else ""


def _forward(graph: Graph, inputs: Mapping[str, float]) -> list[float]:
    values: list[float] = []
    for node in graph.nodes:
        if node.operation in ("input", "constant"):
            values.append(inputs[node.name] if node.operation == "input" else float(node.name))
            continue
        operation = OPERATIONS[node.operation]
        try:
            value = operation.value(*(values[operand] for operand in node.operands))
            problem = "" if math.isfinite(value) else "overflows"
        except ZeroDivisionError:
            problem = "divides by zero"
        except OverflowError:
            problem = "overflows"
        except ValueError:
            problem = f"has no value ({operation.domain})"
        if problem:
            raise ExpressionError(
                graph.text, node.place, f"{describe(node, graph)} {problem}{_at(node, graph, values)}"
            )
        values.append(value)
    return values


def _varying(graph: Graph) -> list[bool]:
    """Of each node whether it depends on an input."""
    varies = [node.operation == "input" for node in graph.nodes]
    for index, node in enumerate(graph.nodes):
        varies[index] |= any(varies[operand] for operand in node.operands)
    return varies


def _no_gradient(graph: Graph, node: Node, operand: int, values: list[float], overflows: bool) -> ExpressionError:
    name = graph.nodes[operand].name
    what = f"makes the gradient of {name} overflow" if overflows else f"has no finite slope by {name}"
    return ExpressionError(graph.text, node.place, f"{describe(node, graph)} {what}{_at(node, graph, values)}")


def _backward(graph: Graph, values: list[float]) -> Passes:
    """Reverse accumulation: each node, last to first, hands its gradient times its slopes on to its operands."""
    nodes, varies = graph.nodes, _varying(graph)
    gradients: list[float | None] = [None] * len(nodes)
    bounds = [0.0] * len(nodes)
    slopes: list[tuple[float | None, ...]] = [(None,) * len(node.operands) for node in nodes]
    gradients[graph.output] = 1.0
    for index in reversed(range(graph.output + 1)):
        node, gradient = nodes[index], gradients[index]
        if gradient is None or not varies[index] or not node.operands:
            continue
        operation = OPERATIONS[node.operation]
        arguments = [*(values[operand] for operand in node.operands), values[index]]
        own: list[float | None] = [None] * len(node.operands)
        for slot, operand in enumerate(node.operands):
            if not varies[operand]:
                continue
            try:
                slope = operation.slopes[slot](*arguments)
                total = (gradients[operand] or 0.0) + gradient * slope
            except (ZeroDivisionError, OverflowError, ValueError):
                slope = total = math.nan
            if not math.isfinite(total):
                raise _no_gradient(graph, node, operand, values, overflows=math.isfinite(slope))
            own[slot], gradients[operand] = slope, total
            terms = abs(slope) + operation.torch_terms(*arguments) + SMALLEST
            bounds[operand] += ROUNDING * terms * abs(gradient) + ROUNDING * (abs(total) + SMALLEST)
            bounds[operand] += abs(slope) * bounds[index]
            if math.isnan(bounds[operand]):  # 0 · inf
                bounds[operand] = math.inf
        slopes[index] = tuple(own)
    return Passes(graph, values, gradients, slopes, bounds)


def _note(gradients: dict[int, float], index: int, gradient: Any) -> None:
    gradients[index] = gradient.item()


def prove(passes: Passes) -> float:
    """Compares every value with torch's in float64, and every gradient with autograd's.

    Each operation of torch gets the operands of this side: then nothing but its own rounding is between two values, and
    `Passes.bounds` holds for the gradients. Those of the intermediate nodes come from hooks on them.

    Returns:
        The largest absolute difference.

    Raises:
        ExpressionError: two numbers differ by more than rounding can explain.
    """
    import torch

    symbols = {"+": "add", "-": "sub", "*": "mul", "/": "div", "**": "pow", "max": "maximum", "min": "minimum"}
    nodes, values = passes.graph.nodes, passes.values
    tensors: list[torch.Tensor] = []
    theirs: dict[int, float] = {}
    checks: list[tuple[int, str, float, float, float]] = []  # node, what, here, in torch, bound
    for index, node in enumerate(nodes):
        if node.operands:
            function = getattr(torch, symbols.get(node.operation, node.operation))  # the others have torch's names
            tensor = function(*(tensors[operand] for operand in node.operands))
            bound = ROUNDING * abs(values[index]) + SMALLEST
            checks.append((index, "value", values[index], tensor.item(), bound))
            tensor.data.fill_(values[index])
        else:
            tensor = torch.tensor(values[index], dtype=torch.float64, requires_grad=node.operation == "input")
        if tensor.requires_grad:
            tensor.register_hook(partial(_note, theirs, index))
        tensors.append(tensor)
    if tensors[passes.graph.output].requires_grad:
        tensors[passes.graph.output].backward()  # type: ignore[no-untyped-call]
    for index, gradient in enumerate(passes.gradients):
        if tensors[index].requires_grad:
            checks.append((index, "gradient", gradient or 0.0, theirs.get(index, 0.0), passes.bounds[index]))

    largest = 0.0
    for index, what, ours, autograds, bound in checks:
        if bound == math.inf:  # torch's own formula overflows here
            continue
        if not abs(ours - autograds) <= bound:
            problem = f"the {what} of {nodes[index].name} is {ours!r} here and {autograds!r} in torch.autograd"
            raise ExpressionError(passes.graph.text, nodes[index].place, problem)
        largest = max(largest, abs(ours - autograds))
    return largest
