import random
import re

import pytest
from backprop.expressions import random_expression
from matplotlib.mathtext import MathTextParser

from mnist_mlp.backprop.derivation import (
    MAX_FACTORS,
    MAX_USES,
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
    "∂f/∂x1 = ∂f/∂p · ∂p/∂q · ∂q/∂x1 = r · 1 · w1 = −0.23 · 1 · −1.5 = 0.345",
    "∂f/∂w1 = ∂f/∂p · ∂p/∂q · ∂q/∂w1 = r · 1 · x1 = −0.23 · 1 · 0.7 = −0.161",
    "∂f/∂x2 = ∂f/∂p · ∂p/∂t · ∂t/∂x2 = r · 1 · w2 = −0.23 · 1 · −0.35 = 0.0805",
    "∂f/∂w2 = ∂f/∂p · ∂p/∂t · ∂t/∂w2 = r · 1 · x2 = −0.23 · 1 · 0.34 = −0.0782",
    "∂f/∂x3 = ∂f/∂r · ∂r/∂s · ∂s/∂x3 = p · 1 · w3 = −1.169 · 1 · −0.25 = 0.29225",
    "∂f/∂w3 = ∂f/∂r · ∂r/∂s · ∂s/∂w3 = p · 1 · x3 = −1.169 · 1 · 0.2 = −0.2338",
    "∂f/∂x4 = ∂f/∂r · ∂r/∂g · ∂g/∂x4 = p · 1 · w4 = −1.169 · 1 · 0.2 = −0.2338",
    "∂f/∂w4 = ∂f/∂r · ∂r/∂g · ∂g/∂w4 = p · 1 · x4 = −1.169 · 1 · −0.9 = 1.0521",
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
        "Forward propagation",
        "Local derivatives",
        "Gradients of the intermediate values",
        "Gradients of the inputs",
        "Final gradients",
    ]
    assert [equation.parts[0] for equation in sections["Gradients of the intermediate values"]] == [
        f"∂f/∂{name}" for name in "prqtsg"
    ]


def test_a_variable_used_twice_is_the_sum_over_its_paths() -> None:
    assert "∂f/∂x = ∂f/∂x + ∂f/∂x = x + x = 3 + 3 = 6" in lines("x*x", x=3)
    symbols = "∂f/∂x = ∂f/∂u · ∂u/∂x + ∂f/∂v1 · ∂v1/∂x = 1 · y + (−1 · (2 · x))"
    assert f"{symbols} = 1 · 5 + (−1 · 6) = 5 + (−6) = −1" in lines("u = x*y; f = u - x**2", x=3, y=5)


def test_kinks_are_said_to_be_there() -> None:
    shown = lines("max(x, y)*relu(x - 2)", x=2, y=2)
    assert "∂v1/∂x = [x > y] = 0.5   (a tie: one half to each, as in PyTorch)" in shown
    assert "∂v3/∂v2 = [v2 > 0] = 0   (at the kink of relu: 0, as in PyTorch)" in shown


def test_what_the_result_does_not_depend_on_is_said() -> None:
    assert "∂f/∂y = 0   (f does not depend on y)" in lines("q = x*y; f = x + 1", x=2, y=3)
    source = latex(Derivation(passes_of("q = y_b*2; f = x + 1", x=2, y_b=3), Latex()).sections(), "")
    assert r"\frac{\partial f}{\partial y_{b}} &= 0 \quad \text{(f does not depend on y\_b)}" in source
    assert lines("2 + 3") == ["Forward propagation", "f = 2 + 3 = 5"]


@pytest.mark.parametrize("seed", range(30))
def test_every_equation_is_true(seed: int) -> None:
    # Python reads the numbers of each chain rule, as rounded as they are shown.
    text, values = random_expression(random.Random(seed))
    passes = work(parse(text), values)
    checked = 0
    for section in Derivation(passes, Notation()).sections()[2:4]:
        for equation in section.equations:
            scale = 0.0
            for part in equation.parts[1:]:
                arithmetic = part.replace("−", "-").replace("·", "*").replace("\n", " ")
                if not re.search(r"[A-Za-z∂…]", re.sub(r"\de[+-]\d", "", arithmetic)):
                    terms = [eval(term.strip(" +")) for term in arithmetic.split(" + ")]
                    scale = max(scale, sum(map(abs, terms)))
                    final = float(equation.parts[-1].replace("−", "-"))
                    assert sum(terms) == pytest.approx(final, abs=1e-4 * scale + 1e-12), (text, equation)
                    checked += 1
    assert checked


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
    source = re.sub(r"\s|\\\\", "", latex(Derivation(report, Latex()).sections(), ""))
    assert (
        r"\cdot\frac{\partialq}{\partialx_{1}}&=r\cdot1\cdotw_{1}&=-0.23\cdot1\cdot\left(-1.5\right)&=0.345" in source
    )


def test_more_paths_than_can_be_written_are_explained_by_what_uses_the_node() -> None:
    # 2**60 paths from x.
    text = "h0 = x\n" + "\n".join(f"h{i + 1} = sin(h{i}) + h{i}" for i in range(60))
    sections = Derivation(passes_of(text, x=0.1), Notation()).sections()
    equations = [equation for section in sections for equation in section.equations]
    (over_uses,) = (equation for equation in equations if equation.parts[0] == "∂h60/∂x" and equation.note)
    assert over_uses.note == "too many paths to write out: from the gradients of what uses it"
    assert over_uses.parts[1] == "∂h60/∂v1 · ∂v1/∂x\n+ ∂h60/∂h1 · ∂h1/∂x"
    assert max(part.count("∂") for equation in equations for part in equation.parts) <= 4 * MAX_FACTORS


def test_more_uses_than_can_be_written_are_counted() -> None:
    text = " + ".join(["x*x"] * 30)
    equation = Derivation(passes_of(text, x=1), Notation()).sections()[3].equations[0]
    assert equation.note.endswith("60 uses")
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
        "−1e−07",
        "1.23457e+08",
    ]
    assert [Latex().number(value) for value in (-0.0, -1e-7, 1e8)] == ["0", r"-1 \times 10^{-7}", r"1 \times 10^{8}"]


def test_dot_has_an_edge_for_each_use(report: Passes) -> None:
    source = dot(report)
    assert source.startswith("digraph backprop {\n")
    assert r'label="x1 = 0.7\n∂f/∂x1 = 0.345"' in source
    assert source.count("->") == sum(len(node.operands) for node in report.graph.nodes) == 14
    assert dot(passes_of("x*x", x=3)).count("n0 -> n1") == 2
    assert '[label="' not in "".join(line for line in dot(passes_of("x + 2", x=1)).split("\n") if "n1 ->" in line)
