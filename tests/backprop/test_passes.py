import random

import pytest
import torch
from backprop.expressions import NAMESPACE, random_expression
from omegaconf import OmegaConf

from mnist_mlp.backprop.expression import ExpressionError, parse
from mnist_mlp.backprop.passes import OPERATIONS, Passes, prove, work
from mnist_mlp.settings import SettingError, compose_config

# The report, section II: the forward steps a to g, ∂f/∂p, ∂f/∂r and the final gradients.
REPORT_VALUES = {"q": -1.05, "t": -0.119, "s": -0.05, "g": -0.18, "p": -1.169, "r": -0.23, "f": 0.26887}
REPORT_GRADIENTS = {
    "p": -0.23,
    "r": -1.169,
    "x1": 0.345,
    "x2": 0.0805,
    "x3": 0.29225,
    "x4": -0.2338,
    "w1": -0.161,
    "w2": -0.0782,
    "w3": -0.2338,
    "w4": 1.0521,
}


def result(text: str, **values: float) -> tuple[float, dict[str, float | None]]:
    """f and the gradient by each named node, proved."""
    passes = work(parse(text), values)
    prove(passes)
    names = [node.name for node in passes.graph.nodes]
    return passes.values[passes.graph.output], dict(zip(names, passes.gradients, strict=True))


@pytest.fixture(scope="module")
def report() -> Passes:
    config = compose_config([], "backprop")
    return work(parse(config.expression), OmegaConf.to_container(config["values"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REPORT_VALUES)
def test_the_reports_values(report: Passes, name: str) -> None:
    index = [node.name for node in report.graph.nodes].index(name)
    assert report.values[index] == pytest.approx(REPORT_VALUES[name], abs=1e-15)


@pytest.mark.parametrize("name", REPORT_GRADIENTS)
def test_the_reports_gradients(report: Passes, name: str) -> None:
    index = [node.name for node in report.graph.nodes].index(name)
    assert report.gradients[index] == pytest.approx(REPORT_GRADIENTS[name], abs=1e-15)


def kink_within(passes: Passes, distance: float) -> bool:
    for node in passes.graph.nodes:
        operands = [passes.values[operand] for operand in node.operands]
        if node.operation in ("max", "min", "relu") and abs(operands[0] - sum(operands[1:])) < distance:
            return True
    return False


def test_500_random_expressions_agree_with_autograd_and_central_differences() -> None:
    # Both read the text themselves: Python evaluates it with torch's functions, then with those of `math`.
    tensors = {name: getattr(torch, name) for name in NAMESPACE if name not in ("max", "min")}
    tensors |= {
        "max": lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
        "min": lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
    }
    generator, step, tested = random.Random(0), 1e-5, 0
    while tested < 500:
        text, values = random_expression(generator)
        passes = work(parse(text), values)
        if (
            kink_within(passes, 1e-3)
            or max(map(abs, passes.values)) > 1e3
            or max(map(abs, filter(None, passes.gradients))) > 1e3
        ):
            continue
        tested += 1
        prove(passes)
        leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
        names = dict(leaves)
        exec(text.replace(" ** ", "**"), {name: lift(function) for name, function in tensors.items()}, names)
        if torch.as_tensor(names["f"]).requires_grad:
            names["f"].backward()
        for index in passes.inputs():
            name, ours = passes.graph.nodes[index].name, passes.gradients[index] or 0.0
            theirs = leaves[name].grad
            assert ours == pytest.approx(theirs.item() if theirs is not None else 0.0, rel=1e-9, abs=1e-12), text
            moved = []
            for sign in (1, -1):
                names = values | {name: values[name] + sign * step}
                exec(text, NAMESPACE, names)
                moved.append(names["f"])
            difference = (moved[0] - moved[1]) / (2 * step)
            assert ours == pytest.approx(difference, rel=1e-5, abs=1e-4), text


def lift(function):  # type: ignore[no-untyped-def]
    """A torch function that takes plain numbers too."""
    return lambda *values: function(*(torch.as_tensor(value, dtype=torch.float64) for value in values))


def test_a_chain_of_10_000_operations() -> None:
    f, gradients = result("*".join(["x"] * 10_001), x=0.9999)
    assert f == pytest.approx(0.9999**10_001, rel=1e-9)
    assert gradients["x"] == pytest.approx(10_001 * 0.9999**10_000, rel=1e-9)
    # 2**3,334 paths: this ends because each node, not each path, is visited once.
    doubling = "h0 = x\n" + "\n".join(f"h{i + 1} = h{i}*0.5 + h{i}*0.5" for i in range(3_334))
    f, gradients = result(doubling, x=3)
    assert (f, gradients["x"]) == (3, 1)


def test_shared_and_repeated_operands() -> None:
    assert result("x*x", x=3) == (9, {"x": 6, "f": 1})
    assert result("x/x + x - x", x=3)[1]["x"] == pytest.approx(0, abs=1e-16)
    # u = xy, f = u² + u·x: ∂f/∂x = 2uy + xy + u = 2·6·3 + 6 + 6, ∂f/∂y = 2ux + x²
    f, gradients = result("u = x*y; f = u*u + u*x", x=2, y=3)
    assert (f, gradients["u"], gradients["x"], gradients["y"]) == (48, 14, 48, 28)


def test_gradients_start_afresh_with_every_call() -> None:
    graph = parse("x*x")
    assert work(graph, {"x": 3}).gradients == work(graph, {"x": 3}).gradients == [6, 1]


def test_what_the_result_does_not_depend_on() -> None:
    assert result("q = x*y; f = x + 1", x=2, y=3)[1] == {"x": 1, "y": None, "q": None, "1": None, "f": 1}
    # Where nothing comes back, an infinite slope harms nobody.
    assert result("q = sqrt(x); f = 2*x", x=0)[1]["x"] == 2
    assert result("2 + 3") == (5, {"2": None, "3": None, "f": 1})


@pytest.mark.parametrize(
    ("text", "values", "gradients"),
    [
        ("relu(x)", {"x": 0}, {"x": 0}),
        ("max(x, y)", {"x": 2, "y": 2}, {"x": 0.5, "y": 0.5}),
        ("min(x, y)", {"x": 2, "y": 2}, {"x": 0.5, "y": 0.5}),
        ("max(x, x)", {"x": 2}, {"x": 1}),
        ("x**y", {"x": 0, "y": 2}, {"x": 0, "y": 0}),
        ("x**0", {"x": 0}, {"x": 0}),
        ("x**3", {"x": -2}, {"x": 12}),
        ("sigmoid(x)", {"x": -1000}, {"x": 0}),
        ("sigmoid(x)", {"x": 1000}, {"x": 0}),
    ],
)
def test_kinks_and_edges_are_pytorchs(text: str, values: dict[str, float], gradients: dict[str, float]) -> None:
    found = result(text, **values)[1]  # proved there
    assert {name: found[name] for name in gradients} == gradients


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_slope_or_value_does_not_pass_the_proof(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    text = {"neg": "-x"}.get(operation, f"x {operation} 2" if not operation.isalpha() else f"{operation}(x)")
    text = f"{operation}(x, 0.5)" if operation in ("max", "min") else text
    right = OPERATIONS[operation]
    slopes = (lambda *arguments: right.slopes[0](*arguments) + 1e-8, *right.slopes[1:])
    monkeypatch.setitem(OPERATIONS, operation, right._replace(slopes=slopes))
    with pytest.raises(ExpressionError, match=r"the gradient of x is .* here and .* in torch\.autograd"):
        prove(work(parse(text), {"x": 0.7}))
    wrong = right._replace(value=lambda *operands: right.value(*operands) * (1 + 1e-8))
    monkeypatch.setitem(OPERATIONS, operation, wrong)
    with pytest.raises(ExpressionError, match=r"is .* here and .* in torch\.autograd"):
        prove(work(parse(text), {"x": 0.7}))


# What is asked for, with which values, and the sentence without the place.
BAD = [
    ("y = a/b; y*2", {"a": 1, "b": 0}, "y = a / b divides by zero at a = 1, b = 0"),
    ("1/(a - a)", {"a": 1}, "f = 1 / v1 divides by zero at v1 = 0"),
    ("1/0", {}, "f = 1 / 0 divides by zero"),
    ("log(a) + 1", {"a": 0}, "v1 = log(a) has no value (its argument must be above 0) at a = 0"),
    ("log(-2)", {}, "f = log(-2) has no value (its argument must be above 0)"),
    ("sqrt(a)", {"a": -1}, "f = sqrt(a) has no value (its argument must be at least 0) at a = -1"),
    ("a*exp(b)", {"a": 1, "b": 1000}, "v1 = exp(b) overflows at b = 1000"),
    ("a*b", {"a": 1e200, "b": -1e200}, "f = a * b overflows at a = 1e+200, b = -1e+200"),
    ("a**b", {"a": 10, "b": 400}, "f = a ** b overflows at a = 10, b = 400"),
    (
        "(-8)**a",
        {"a": 0.5},
        "f = (-8) ** a has no value (a negative base takes a whole exponent, and a base of 0 none below 0) at a = 0.5",
    ),
    ("sqrt(a)", {"a": 0}, "f = sqrt(a) has no finite slope by a at a = 0"),
    ("a**0.5", {"a": 0}, "f = a ** 0.5 has no finite slope by a at a = 0"),
    ("a**b", {"a": -2, "b": 2}, "f = a ** b has no finite slope by b at a = -2, b = 2"),
    ("q = 1e200*a; f = q*1e200", {"a": 0}, "q = 1e200 * a makes the gradient of a overflow at a = 0"),
    ("a*b", {"a": 1}, "b has no value: give it one with values.b=NUMBER"),
]


@pytest.mark.parametrize(("text", "values", "problem"), BAD)
def test_the_node_at_which_it_fails_is_named(text: str, values: dict[str, float], problem: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        prove(work(parse(text), values))
    assert str(caught.value).split("\n")[0] == f"expression: {problem}"


@pytest.mark.parametrize("value", ["abc", None, True, float("nan"), float("inf"), 10**400, [1], {"b": 1}])
def test_a_value_that_is_no_number_is_named(value: object) -> None:
    with pytest.raises(SettingError, match=r"^values\.a=.*: must be a finite number$"):
        work(parse("a*2"), {"a": value})


def test_a_value_for_nothing_is_named() -> None:
    with pytest.raises(SettingError, match=r"^values\.b=1: the expression has no variable b; its variables are a$"):
        work(parse("a*2"), {"a": 1, "b": 1})
    with pytest.raises(SettingError, match=r"^values\.q=1: the expression has no variable q; it has no variables$"):
        work(parse("q = 2; q*q"), {"q": 1})
