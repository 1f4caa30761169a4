"""The oracle is Python's own reading of the same text."""

import random

import pytest
from backprop.expressions import NAMESPACE, random_expression

from mnist_mlp.backprop.expression import ExpressionError, parse
from mnist_mlp.backprop.passes import work

PRECEDENCE = [
    "-2**2",
    "2**-1**2",
    "2**3**2",
    "-x**2 + -x*y",
    "x - y - 3 - x",
    "x / y / 2 * x",
    "x*-y",
    "--x",
    "- -2 - -x",
    "+x - +y",
    "(x + y)*(x - (y - 2))",
    "2*x**2*y**-0.5",
    "max(x, min(y, 2)) - tanh(-x)**2",
    "1.5e-1*x + .5 + 2.",
]


@pytest.mark.parametrize("text", PRECEDENCE)
def test_precedence_is_pythons(text: str) -> None:
    passes = work(parse(text), {name: value for name, value in {"x": 1.7, "y": 0.6}.items() if name in text})
    expected = eval(text, NAMESPACE | {"x": 1.7, "y": 0.6})
    assert passes.values[passes.graph.output] == pytest.approx(expected, rel=1e-15)


def test_random_expressions_read_as_in_python() -> None:
    generator = random.Random(1)
    for _ in range(200):
        text, values = random_expression(generator)
        names = dict(values)
        exec(text, NAMESPACE, names)
        passes = work(parse(text), values)
        assert passes.values[passes.graph.output] == pytest.approx(names["f"], rel=1e-12)


def test_other_signs_mean_the_same() -> None:
    typographic, plain = parse("a × b ÷ c − d^2·e"), parse("a * b / c - d**2*e")
    assert [node[:3] for node in typographic.nodes] == [node[:3] for node in plain.nodes]


def test_nodes_are_named_by_their_statements_or_counted() -> None:
    graph = parse("q = x*x; v1 = q + 1; tanh(v1)*q - 2*x")
    assert [node.name for node in graph.nodes] == ["x", "q", "1", "v1", "v2", "v3", "2", "v4", "f"]
    assert graph.nodes[graph.output].operation == "-"
    assert [node.name for node in parse("f + 1").nodes] == ["f", "1", "v1"]
    assert parse("y = x; y*y").nodes[1].operands == (0, 0)


def test_a_line_ends_a_statement_but_not_within_parentheses() -> None:
    graph = parse("\nq = (x\n  + 1)\n\nf = q*2;\n")
    assert [node.name for node in graph.nodes] == ["x", "1", "q", "2", "f"]


def test_the_minus_of_a_constant_leaves_what_uses_it_alone() -> None:
    passes = work(parse("q = 2; f = -q + q*x"), {"x": 3})
    assert passes.values[passes.graph.output] == 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("+".join(["x"] * 10_001), 10_001),
        ("sin(" * 10_000 + "x" + ")" * 10_000, 10_001),
        ("(" * 10_000 + "x" + ")" * 10_000, 1),
        ("**".join(["x"] * 10_001), 10_001),
        ("-" * 10_000 + "x", 10_001),
        ("h0 = x\n" + "\n".join(f"h{i + 1} = h{i}*x" for i in range(10_000)), 10_001),
    ],
)
def test_depth_does_not_matter(text: str, count: int) -> None:
    assert len(parse(text).nodes) == count


KNOWN = "cos, exp, log, max, min, relu, sigmoid, sin, sqrt, tanh"
# The problem, and the text up to the place it points at.
BAD = {
    "a +": ("the expression ends where a value is expected", "a +"),
    "a + * b": ("* stands where a value is expected", "a + "),
    "a b": ("an operator is expected before b", "a "),
    "2x": ("an operator is expected before x", "2"),
    "(a + b": ("this parenthesis is never closed", ""),
    "a + sin (b": ("this parenthesis is never closed", "a + sin "),
    "a + b)": ("this parenthesis was never opened", "a + b"),
    "a, b": ("a comma can only stand between a function's arguments", "a"),
    "max(a)": ("max takes 2 values, not 1", ""),
    "1 + exp(a, b)": ("exp takes 1 value, not 2", "1 + "),
    "max()": (") stands where a value is expected", "max("),
    "foo(a)": (f"there is no function foo; there are {KNOWN}", ""),
    "exp + 1": ("exp is a function: write exp(...)", ""),
    "exp = 1": ("exp is a function and cannot be a name", ""),
    "a == b": ("= stands where a value is expected", "a ="),
    "(a = b)": ("= can only follow the name at a statement's start", "(a "),
    "a; b": ("a statement before the last must be named: name = ...", ""),
    "q = a; q = b; q": ("q is defined twice", "q = a; "),
    "q = q + 1": ("q is used before it is defined", ""),
    "": ("it is empty: write one such as 'q = x*w; f = q + 1'", ""),
    " ; \n": ("it is empty: write one such as 'q = x*w; f = q + 1'", ""),
    "1 + 1e999": ("1e999 overflows (the largest number is about 1.8e308)", "1 + "),
    # What is not arithmetic.
    "a.real": ("'.' is not arithmetic", "a"),
    "().__class__": ("'.' is not arithmetic", "()"),
    "__import__('os')": ('"\'" is not arithmetic', "__import__("),
    "__import__(os)": (f"there is no function __import__; there are {KNOWN}", ""),
    "1 + __name__": ("__name__ is not arithmetic: a name begins with a letter", "1 + "),
    "[x for x in y]": ("'[' is not arithmetic", ""),
    "(x for x in y)": ("an operator is expected before for", "(x "),
    "lambda: 1": ("':' is not arithmetic", "lambda"),
    "a if b else c": ("an operator is expected before if", "a "),
    "a @ b": ("'@' is not arithmetic", "a "),
    "a < b": ("'<' is not arithmetic", "a "),
    "f'{a}'": ('"\'" is not arithmetic', "f"),
    "α": ("'α' is not arithmetic", ""),
}


@pytest.mark.parametrize("text", BAD)
def test_an_error_points_at_its_place(text: str) -> None:
    problem, before = BAD[text]
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    sentence, excerpt, caret = str(caught.value).split("\n")
    assert sentence == f"expression: {problem}"
    assert excerpt == f"  {text.split(chr(10))[0]}"
    assert caret == "  " + " " * len(before) + "^"


def test_a_long_expression_is_shown_around_the_place() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("first = 1\n" + "a + " * 100 + "§" + " + b" * 100 + "\nlast")
    _, excerpt, caret = str(caught.value).split("\n")
    assert len(excerpt) < 80
    assert excerpt[caret.index("^")] == "§"
    assert excerpt.startswith("  …")
    assert excerpt.endswith("…")
