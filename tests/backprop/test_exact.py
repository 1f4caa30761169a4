"""The oracle is arithmetic of many digits (mpmath) with the textbook's formulas, those that cancel included."""

import math
import random
import sys
from collections.abc import Callable

import mpmath
import pytest
from backprop.expressions import random_expression
from mpmath import mpf

from mnist_mlp.backprop.derivation import Derivation, Latex, Notation, dot, latex, terminal
from mnist_mlp.backprop.expression import parse
from mnist_mlp.backprop.layout import Layout
from mnist_mlp.backprop.passes import OPERATIONS, Passes, prove, work
from mnist_mlp.settings import SettingError

exactly = mpmath.workdps(700)  # 1 - tanh² of 745 is 4e-647
ULP = 2.0**-52


def sigmoid(a: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-a))


def half_of_a_tie(difference: mpf) -> mpf:
    return (1 + mpmath.sign(difference)) / 2


def power(a: mpf, b: mpf) -> mpf:
    return mpf(1) if b == 0 else mpf(0) if a == 0 else mpmath.power(a, b)


# By operation: its value, and its slopes; conventions are PyTorch's.
EXACT: dict[str, tuple[Callable[..., mpf], ...]] = {
    "+": (lambda a, b: a + b, lambda a, b: 1, lambda a, b: 1),
    "-": (lambda a, b: a - b, lambda a, b: 1, lambda a, b: -1),
    "*": (lambda a, b: a * b, lambda a, b: b, lambda a, b: a),
    "/": (lambda a, b: a / b, lambda a, b: 1 / b, lambda a, b: -a / b**2),
    "**": (power, lambda a, b: b * power(a, b - 1) if b else 0, lambda a, b: power(a, b) * mpmath.log(a) if a else 0),
    "neg": (lambda a: -a, lambda a: -1),
    "exp": (mpmath.exp, mpmath.exp),
    "log": (mpmath.log, lambda a: 1 / a),
    "sqrt": (mpmath.sqrt, lambda a: 1 / (2 * mpmath.sqrt(a))),
    "sin": (mpmath.sin, mpmath.cos),
    "cos": (mpmath.cos, lambda a: -mpmath.sin(a)),
    "tanh": (mpmath.tanh, exactly(lambda a: 1 - mpmath.tanh(a) ** 2)),
    "sigmoid": (sigmoid, exactly(lambda a: sigmoid(a) * (1 - sigmoid(a)))),
    "relu": (lambda a: max(a, mpf(0)), lambda a: int(a > 0)),
    "max": (max, lambda a, b: half_of_a_tie(a - b), lambda a, b: half_of_a_tie(b - a)),
    "min": (min, lambda a, b: half_of_a_tie(b - a), lambda a, b: half_of_a_tie(a - b)),
}


def near(ours: float, exact: mpf, relative: float) -> bool:
    """Right to this relative error, or to what is left of the digits of numbers near the smallest."""
    return bool(abs(mpf(ours) - exact) <= mpf(relative) * abs(exact) + 4 * mpf(5e-324))


def points(generator: random.Random, count: int) -> list[float]:
    """Numbers of every size that float64 has, and many of the sizes at which functions do something."""
    found = [0.0, 1.0, -1.0, 0.5, 2.0, sys.float_info.max, -sys.float_info.max, 5e-324, -5e-324]
    while len(found) < count:
        size = generator.choice(
            [10 ** generator.uniform(-323, 308), generator.uniform(0, 800), generator.uniform(0, 45)]
        )
        found.append(size * generator.choice([1, -1]))
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_values_and_slopes_are_right_over_the_whole_range(operation: str) -> None:
    generator, tested = random.Random(operation), 0
    text = f"{operation}(a, b)" if operation in ("max", "min") else f"a {operation} b"
    names = ("a", "b") if len(EXACT[operation]) == 3 else ("a",)
    if len(names) == 1:
        text = "-a" if operation == "neg" else f"{operation}(a)"
    graph = parse(text)
    with mpmath.workdps(50):
        for a in points(generator, 200):
            for b in points(generator, 11)[-2:] if len(names) == 2 else [0.0]:
                if operation == "**" and abs(b * math.log(abs(a) or 1)) > 800:
                    b /= abs(b * math.log(abs(a))) / generator.uniform(0, 700)
                arguments = [a, b][: len(names)]
                try:
                    passes = work(graph, dict(zip(names, arguments, strict=True)))
                except SettingError:
                    continue
                prove(passes)
                exact = [function(*map(mpf, arguments)) for function in EXACT[operation]]
                assert near(passes.values[-1], exact[0], 2 * ULP), arguments
                for slope, expected in zip(passes.slopes[-1], exact[1:], strict=True):
                    assert slope is not None
                    assert near(slope, expected, 8 * ULP), (arguments, slope, float(expected))
                tested += 1
    assert tested > 80


@pytest.mark.parametrize(
    ("text", "values", "gradient"),
    [
        ("tanh(a)", {"a": 10}, 8.244614455767399e-09),
        ("sigmoid(a)", {"a": 30}, 9.35762296884e-14),
        ("sigmoid(a)", {"a": 40}, 4.24835425529e-18),
        ("n = a*w1 + x2*w2 + b; o = tanh(n)", {"a": 2, "w1": 4, "x2": 1, "w2": 1, "b": 1}, 4 * 8.244614455767399e-09),
        ("(-1)*a**1e17", {"a": -1}, 1e17),  # b - 1 is b, and torch takes the sign of an even power
    ],
)
def test_what_was_once_called_wrong(text: str, values: dict[str, float], gradient: float) -> None:
    passes = work(parse(text), values)
    prove(passes)
    assert passes.gradients[passes.inputs()[0]] == pytest.approx(gradient, rel=1e-11)


def check_exactly(passes: Passes) -> None:
    """Every value, given those of its operands, and every gradient, given all values."""
    nodes, values = passes.graph.nodes, [mpf(value) for value in passes.values]
    gradients = [mpf(0)] * len(nodes)
    gradients[passes.graph.output] = mpf(1)
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        arguments = [values[operand] for operand in node.operands]
        if not arguments:
            continue
        value, *slopes = EXACT[node.operation]
        assert near(passes.values[index], value(*arguments), 4 * ULP), passes.graph.text
        for slot, operand in enumerate(node.operands):
            if passes.slopes[index][slot] is not None:
                gradients[operand] += gradients[index] * slopes[slot](*arguments)
    for index, gradient in enumerate(passes.gradients):
        if gradient is not None:
            allowed = passes.bounds[index] if passes.bounds[index] < math.inf else 1e-9 * abs(gradient)
            assert abs(gradient - gradients[index]) <= allowed, (passes.graph.text, nodes[index].name)


def differences(passes: Passes) -> list[mpf]:
    """For each input the central difference of the result."""
    nodes = passes.graph.nodes
    inputs = {index: mpf(passes.values[index]) for index in passes.inputs()}

    def result(inputs: dict[int, mpf]) -> mpf:
        values: list[mpf] = []
        for index, node in enumerate(nodes):
            constant = mpf(float(node.name)) if node.operation == "constant" else None
            arguments = [values[operand] for operand in node.operands]
            values.append(EXACT[node.operation][0](*arguments) if arguments else inputs.get(index, constant))
        return values[passes.graph.output]

    step = mpf("1e-20")
    moved = [[result(inputs | {index: inputs[index] + sign * step}) for sign in (1, -1)] for index in inputs]
    return [(upper - lower) / (2 * step) for upper, lower in moved]


def at_a_kink(passes: Passes) -> bool:
    return any(
        node.operation in ("relu", "max", "min")
        and abs(passes.values[node.operands[0]] - sum(passes.values[operand] for operand in node.operands[1:])) < 1e-9
        for node in passes.graph.nodes
    )


PIECES = [
    *(
        "+",
        "-",
        "*",
        "/",
        "**",
        "^",
        "×",
        "÷",
        "−",
        "(",
        ")",
        ",",
        ";",
        "=",
        "\n",
        " ",
        "\t",
        ".",
        "_",
        "e",
        "'",
        "é",
        "\\",
        "\0",
    ),
    *("x", "y", "z", "q", "f", "v1", "x_1", "0", "1", "2", "0.5", "1e308", "1e-320", "1e999", "1e17", "10"),
    *("max(", "min(", "sqrt(", "log(", "exp(", "tanh(", "sigmoid(", "relu(", "sin(", "(-1)**", "0**", "q = ", "; f = "),
]
NUMBERS = [
    0,
    -0.0,
    1,
    -1,
    2,
    0.5,
    -0.5,
    3.7,
    10,
    -12,
    30,
    745,
    -745,
    1e17,
    1e-9,
    1e154,
    -1e308,
    1e-308,
    5e-324,
    10**400,
]


def mutated(text: str, generator: random.Random) -> str:
    for _ in range(generator.choice([0, 1, 1, 2, 4])):
        start = generator.randrange(len(text) + 1)
        end = min(len(text), start + generator.choice([0, 0, 1, 3]))
        text = text[:start] + generator.choice([*PIECES, "", text[end : end + 7]]) + text[end:]
    return text


def test_whatever_is_asked_for_is_right_or_refused_in_a_sentence() -> None:
    generator = random.Random(15)
    worked = refused = compared = 0
    with mpmath.workdps(50):
        for number in range(700):
            text, values = random_expression(generator)
            if mutant := number % 3 > 0:
                text = mutated(text, generator)
            if number % 9 == 8:  # nothing but pieces
                text = "".join(generator.choices(PIECES, k=generator.randint(1, 12)))
            try:
                graph = parse(text)
                names = [node.name for node in graph.nodes if node.operation == "input"]
                wild = mutant and generator.random() < 0.6
                given = {name: generator.choice(NUMBERS) if wild else values.get(name, 0.7) for name in names}
                passes = work(graph, given)
                prove(passes)
            except SettingError as error:
                sentence = str(error).split("\n")[0]
                assert sentence.startswith(("expression: ", "values.")), (text, sentence)
                assert "torch" not in sentence, (text, given, sentence)
                refused += 1
                continue
            worked += 1
            for notation in (Notation(), Latex()):
                sections = Derivation(passes, notation).sections()
                equations = [equation.parts for section in sections[1:] for equation in section.equations]
                assert all(len(parts) > 1 and all(parts) for parts in equations)
                assert terminal(sections) or len(passes.values) == 1
            assert latex(sections, "").isascii()
            assert dot(passes).count("->") == sum(len(node.operands) for node in graph.nodes)
            if number % 100 == 0:
                Layout(passes)
            check_exactly(passes)
            if not wild and not at_a_kink(passes) and max(map(abs, passes.values)) < 1e6:
                for index, difference in zip(passes.inputs(), differences(passes), strict=True):
                    gradient = passes.gradients[index] or 0.0
                    assert abs(gradient - difference) <= 1e-7 * (1 + abs(difference)), (text, graph.nodes[index].name)
                    compared += 1
    assert min(worked, refused, compared) > 200
