import math
import random
import re

import pytest
from backprop.expressions import NAMESPACE, random_expression
from matplotlib.mathtext import MathTextParser

from mnist_mlp.backprop.derivation import (
    LATEX_WIDTH,
    MAX_USES,
    WIDTH,
    Derivation,
    Latex,
    Notation,
    dot,
    latex,
    markdown,
    terminal,
)
from mnist_mlp.backprop.expression import parse
from mnist_mlp.backprop.passes import Passes, work
from mnist_mlp.settings import compose_config

REPORT = [
    # Forward propagation, a to g.
    "q = x1 · w1 = 0.7 · (−1.5) = −1.05",
    "t = x2 · w2 = 0.34 · (−0.35) = −0.119",
    "s = x3 · w3 = 0.2 · (−0.25) = −0.05",
    "g = x4 · w4 = (−0.9) · 0.2 = −0.18",
    "p = q + t = (−1.05) + (−0.119) = −1.169",
    "r = s + g = (−0.05) + (−0.18) = −0.23",
    "f = p · r = (−1.169) · (−0.23) = 0.26887",
    # Some of the partial derivatives, then the gradients.
    "∂q/∂x1 = w1 = −1.5",
    "∂p/∂q = 1",
    "∂f/∂p = r = −0.23",
    "∂f/∂r = p = −1.169",
    "df/dp = ∂f/∂p = r = −0.23",
    "df/dr = ∂f/∂r = p = −1.169",
    "df/dx1 = df/dq · ∂q/∂x1 = ∂f/∂p · ∂p/∂q · ∂q/∂x1 = r · 1 · w1 = (−0.23) · 1 · (−1.5) = 0.345",
    "df/dw1 = df/dq · ∂q/∂w1 = ∂f/∂p · ∂p/∂q · ∂q/∂w1 = r · 1 · x1 = (−0.23) · 1 · 0.7 = −0.161",
    "df/dx2 = df/dt · ∂t/∂x2 = ∂f/∂p · ∂p/∂t · ∂t/∂x2 = r · 1 · w2 = (−0.23) · 1 · (−0.35) = 0.0805",
    "df/dw2 = df/dt · ∂t/∂w2 = ∂f/∂p · ∂p/∂t · ∂t/∂w2 = r · 1 · x2 = (−0.23) · 1 · 0.34 = −0.0782",
    "df/dx3 = df/ds · ∂s/∂x3 = ∂f/∂r · ∂r/∂s · ∂s/∂x3 = p · 1 · w3 = (−1.169) · 1 · (−0.25) = 0.29225",
    "df/dw3 = df/ds · ∂s/∂w3 = ∂f/∂r · ∂r/∂s · ∂s/∂w3 = p · 1 · x3 = (−1.169) · 1 · 0.2 = −0.2338",
    "df/dx4 = df/dg · ∂g/∂x4 = ∂f/∂r · ∂r/∂g · ∂g/∂x4 = p · 1 · w4 = (−1.169) · 1 · 0.2 = −0.2338",
    "df/dw4 = df/dg · ∂g/∂w4 = ∂f/∂r · ∂r/∂g · ∂g/∂w4 = p · 1 · x4 = (−1.169) · 1 · (−0.9) = 1.0521",
]


def passes_of(text: str, **values: float) -> Passes:
    return work(parse(text), values)


def lines(text: str, **values: float) -> list[str]:
    """What the terminal shows, an equation a line."""
    shown = terminal(Derivation(passes_of(text, **values), Notation()).sections())
    return [line.strip() for line in re.sub(r"\n +([=+])", r" \1", shown).split("\n")]


@pytest.fixture(scope="module")
def report() -> Passes:
    config = compose_config([], "backprop")
    return work(parse(config.expression), dict(config["values"]))


@pytest.mark.parametrize("line", REPORT)
def test_the_reports_lines(report: Passes, line: str) -> None:
    sections = Derivation(report, Notation()).sections()
    assert f"\n  {line}\n" in terminal(sections)
    assert f"\n{line}\n" in markdown(report, sections, "proof")


def test_the_order_is_the_reports(report: Passes) -> None:
    sections = {section.title: section.equations for section in Derivation(report, Notation()).sections()}
    assert list(sections) == [
        "Notation",
        "Forward propagation",
        "Local derivatives",
        "Gradients of the intermediate values",
        "Gradients of the inputs",
        "Final gradients",
    ]
    assert [equation.parts[0] for equation in sections["Gradients of the intermediate values"]] == [
        f"df/d{name}" for name in "prqtsg"
    ]


def test_a_local_derivative_and_a_gradient_never_share_a_symbol() -> None:
    shown = lines("x*x", x=3)
    assert "df/dx = ∂f/∂x⁽¹⁾ + ∂f/∂x⁽²⁾ = x + x = 3 + 3 = 6" in shown
    assert "∂f/∂x⁽¹⁾ = x = 3" in shown
    assert "∂u/∂x⁽¹⁾, ∂u/∂x⁽²⁾   (where x is both operands of u)" in shown
    shown = lines("u = x*y; f = u - x**2", x=3, y=5)
    assert "df/dx = df/du · ∂u/∂x + df/dv1 · ∂v1/∂x = 1 · 5 + (−1) · 6 = 5 + (−6) = −1" in shown
    assert "∂u/∂x   (local: how u changes with its operand x alone)" in shown
    for seed in range(40):
        text, values = random_expression(random.Random(seed))
        for notation in (Notation(), Latex()):
            values_of: dict[str, str] = {}
            for section in Derivation(work(parse(text), values), notation).sections()[1:]:
                for left, *_, value in (equation.parts for equation in section.equations):
                    assert values_of.setdefault(left, value) == value, (text, left)


NEURON = "z = w1*x1 + w2*x2 + b; a = sigmoid(z); L = -(y*log(a) + (1-y)*log(1-a))"


def test_what_gradients_share_is_computed_once() -> None:
    passes = passes_of(NEURON, w1=0.5, x1=-2, w2=1, x2=0.3, b=0.1, y=1)
    for notation, render in ((Notation(), terminal), (Latex(), lambda sections: latex(sections, ""))):
        source = render(Derivation(passes, notation).sections())
        z_by_v3 = notation.local(notation.name("z"), notation.name("v3"))
        assert source.count(z_by_v3) == 2  # where it is worked out, and in the one gradient that needs it
        assert source.count("\n") < 100
    assert "dL/dw1 = dL/dv1 · ∂v1/∂w1 = (−0.645656) · (−2) = 1.29131" in lines(
        NEURON, w1=0.5, x1=-2, w2=1, x2=0.3, b=0.1, y=1
    )


def test_negative_numbers_in_products_are_in_parentheses() -> None:
    for seed in range(20):
        text, values = random_expression(random.Random(seed))
        passes = work(parse(text), values)
        shown = [line for line in terminal(Derivation(passes, Notation()).sections()).split("\n") if "·" in line]
        assert not [line for line in shown if re.search(r"· −\d|[=+] −[\d.e−]+ ·|^\s*−[\d.e−]+ ·", line)]
        source = latex(Derivation(passes, Latex()).sections(), "")
        assert not re.search(r"\\cdot -|[=+] -[\d.]+ \\cdot", source)


@pytest.mark.parametrize(
    ("text", "values", "line"),
    [
        ("max(x, y)*2", {"x": 2, "y": 2}, "∂v1/∂x = 0.5   (a tie: one half to each operand, as in PyTorch)"),
        ("max(x, y)", {"x": 2, "y": 2}, "df/dx = ∂f/∂x = 0.5"),
        ("min(x, x)", {"x": 2}, "∂f/∂x⁽¹⁾ = 0.5   (a tie: one half to each operand, as in PyTorch)"),
        ("relu(x - 2)", {"x": 2}, "∂f/∂v1 = 0   (at the kink of relu: 0, as in PyTorch)"),
        ("x**y", {"x": 0, "y": 0}, "f = x^y = 0^0 = 1   (0^0 counts as 1, as in PyTorch)"),
        ("x**y", {"x": 0, "y": 0}, "∂f/∂x = 0   (x^0 counts as 1 for every x)"),
        ("x**y", {"x": 0, "y": 0}, "∂f/∂y = 0   (0^b by b at b = 0: 0, as in PyTorch)"),
        ("x**y", {"x": 0, "y": 1}, "∂f/∂x = 1   (0^0 counts as 1, as in PyTorch)"),
        ("x**y", {"x": 0, "y": 2}, "∂f/∂y = 0   (0^b is 0 for every b > 0)"),
        ("x**0", {"x": 0}, "∂f/∂x = 0   (x^0 counts as 1 for every x)"),
        ("x**2", {"x": 0}, "∂f/∂x = 2 · x = 0"),
    ],
)
def test_conventions_are_said_beside_the_line(text: str, values: dict[str, float], line: str) -> None:
    assert line in lines(text, **values)
    source = latex(Derivation(passes_of(text, **values), Latex()).sections(), "")
    note = line.partition("   ")[2].replace("^", r"\^{}")
    assert rf"\quad \text{{{note}}}" in source or not note


def test_what_the_result_does_not_depend_on_is_said() -> None:
    assert "df/dy = 0   (f does not depend on y)" in lines("q = x*y; f = x + 1", x=2, y=3)
    source = latex(Derivation(passes_of("q = y_b*2; f = x + 1", x=2, y_b=3), Latex()).sections(), "")
    assert r"\frac{df}{dy_{b}} &= 0 \quad \text{(f does not depend on y\_b)}" in source
    assert lines("2 + 3") == ["Forward propagation", "f = 2 + 3 = 5"]
    assert [*filter(None, lines("x", x=3))][-4:] == [
        "Gradients of the inputs",
        "dx/dx = 1",
        "Final gradients",
        "dx/dx = 1",
    ]


def arithmetic(text: str) -> str:
    """A formula of `Notation` in Python."""
    for shown, python in {
        "−": "-",
        "·": "*",
        "^": "**",
        "²": "**2",
        "√": "sqrt",
        "\n": " ",
        "[": "(",
        "]": ")",
    }.items():
        text = text.replace(shown, python)
    return text


@pytest.mark.parametrize("seed", range(30))
def test_every_equation_is_true(seed: int) -> None:
    # Python works out each part: formulas with the values of the nodes, and numbers as rounded as they are shown.
    text, values = random_expression(random.Random(seed))
    passes = work(parse(text), values)
    names = {**NAMESPACE, "cosh": math.cosh}
    names |= {node.name: value for node, value in zip(passes.graph.nodes, passes.values, strict=True)}
    checked = {"formula": 0, "chain": 0}
    for section in Derivation(passes, Notation()).sections()[1:]:
        for equation in section.equations:
            final = float(arithmetic(equation.parts[-1]))
            for part in equation.parts[1:-1]:
                if re.search(r"[∂…]", part):
                    continue
                formula = re.search(r"[a-z]", re.sub(r"\de", "", part))
                if not formula and section.title == "Forward propagation":
                    continue
                terms = [eval(term, names) for term in arithmetic(part).split(" + ")]
                scale = sum(map(abs, terms))
                assert sum(terms) == pytest.approx(final, abs=1e-4 * scale + 1e-9), (text, equation)
                checked["formula" if formula else "chain"] += 1
    assert min(checked.values()) > 0


def balanced(source: str) -> None:
    stack: list[str] = []
    closes = {"}": "{", r"\right)": r"\left("}
    for token in re.findall(r"\\left\(|\\right\)|\\begin\{[a-z*]+\}|\\end\{[a-z*]+\}|\\_|[{}]", source):
        if token.startswith((r"\begin", r"\left", "{")):
            stack.append(token)
        elif token != r"\_":
            assert stack, source
            assert stack.pop() == (closes.get(token) or token.replace("end", "begin")), source
    assert not stack


@pytest.mark.parametrize("seed", range(6))
def test_latex_is_whole_and_its_formulas_are_read_by_matplotlib(seed: int) -> None:
    if seed == 0:
        text, values = (
            "long_name_2*x1**-2.5 + y_b/1e-7 - 3e8*x1 + sqrt(x1)**y_b",
            {"long_name_2": 2, "x1": 3, "y_b": 0.5},
        )
    else:
        text, values = random_expression(random.Random(seed))
    source = latex(Derivation(work(parse(text), values), Latex()).sections(), "proof")
    assert source.isascii()
    balanced(source)
    parser = MathTextParser("path")
    for block in re.findall(r"\\begin\{align\*\}\n(.*?)\n\\end\{align\*\}", source, re.DOTALL):
        for row in block.split("\\\\\n"):
            assert row.count("&") == 1
            # matplotlib's reader of TeX formulas; it lacks \text, which is amsmath's.
            formula = re.sub(r"\\quad \\text\{.*?\}", "", row).replace("&", "")
            if formula.strip():
                parser.parse(f"${formula}$")


def test_latex_says_it_as_the_report_does(report: Passes) -> None:
    source = re.sub(r"\s|\\\\|&", "", latex(Derivation(report, Latex()).sections(), ""))
    assert (
        r"\cdot\frac{\partialq}{\partialx_{1}}=r\cdot1\cdotw_{1}=\left(-0.23\right)\cdot1\cdot\left(-1.5\right)=0.345"
        in source
    )


def test_other_names_are_other_symbols_in_latex() -> None:
    names = [
        "x1",
        "x_1",
        "x__1",
        "x1_",
        "x_1_",
        "xb",
        "x_b",
        "x__b",
        "x_b1",
        "x_b_1",
        "xb1",
        "xb_1",
        "x1b",
        "x_1b",
        "x",
    ]
    assert len({Latex().name(name) for name in names}) == len(names)
    assert [Latex().name(name) for name in ("x1", "x_1", "y_b")] == ["x_{1}", r"x_{\_1}", "y_{b}"]


def test_long_equations_are_broken() -> None:
    names = {f"a_rather_long_name_{number}": number + 0.123456 for number in range(9)}
    text = " + ".join(f"{name}*x" for name in names)
    sections = Derivation(passes_of(text, x=-1.234567e-5, **names), Notation()).sections()
    rows = terminal(sections).split("\n")
    assert max(map(len, rows)) <= WIDTH
    assert len({row.index("=") for row in rows if row.startswith("        ") and "+ d" in row and "=" in row}) <= 1
    source = latex(Derivation(passes_of("+".join(["x*x"] * 20), x=1.2345), Latex()).sections(), "")
    for row in re.findall(r".*&.*", source):  # as many symbols as fit on a page, a fraction's two lines counted once
        shown = re.sub(r"\\frac\{((?:[^{}]|\{[^{}]*\})*)\}\{(?:[^{}]|\{[^{}]*\})*\}", r"\1", row)
        shown = re.sub(r"\\(left|right|quad|text)|[{}_^&\\\\]", "", re.sub(r"\\(cdot|partial|sum|cdots)", "x", shown))
        assert len(shown) < LATEX_WIDTH + 12, row


def test_more_uses_than_can_be_written_are_counted() -> None:
    text = " + ".join(["x*x"] * 30)
    equation = Derivation(passes_of(text, x=1), Notation()).sections()[-2].equations[0]
    assert equation.note == "60 terms"
    assert equation.parts[1].count("+") == MAX_USES
    assert equation.parts[1].endswith("…")
    assert equation.parts[-1] == "60"


@pytest.mark.parametrize(
    "text",
    [
        "*".join(["x"] * 10_001),
        "sin(" * 10_000 + "x" + ")" * 10_000,
        " + ".join(f"x{i}" for i in range(10_001)),
        "h0 = x\n" + "\n".join(f"h{i + 1} = h{i}*0.5 + h{i}*0.5" for i in range(3_334)),
    ],
)
def test_the_length_grows_with_the_graph_and_not_with_its_paths(text: str) -> None:
    graph = parse(text)
    passes = work(graph, {node.name: 1.0 for node in graph.nodes if node.operation == "input"})
    for notation in (Notation(), Latex()):
        sections = Derivation(passes, notation).sections()
        longest = max(sum(map(len, equation.parts)) for section in sections for equation in section.equations)
        assert longest < 12_000


def test_numbers() -> None:
    assert [Notation().number(value) for value in (-0.0, 0.1 + 0.2, -1e-7, 123456789.0)] == [
        "0",
        "0.3",
        "−1e−7",
        "1.23457e8",
    ]
    assert [Latex().number(value) for value in (-0.0, -1e-7, 1e8)] == ["0", r"-1 \times 10^{-7}", r"1 \times 10^{8}"]


def test_dot_has_an_edge_for_each_use(report: Passes) -> None:
    source = dot(report)
    assert source.startswith("digraph backprop {\n")
    assert r'label="x1 = 0.7\ndf/dx1 = 0.345"' in source
    assert source.count("->") == sum(len(node.operands) for node in report.graph.nodes) == 14
    assert dot(passes_of("x*x", x=3)).count("n0 -> n1") == 2
    assert '[label="' not in "".join(line for line in dot(passes_of("x + 2", x=1)).split("\n") if "n1 ->" in line)
