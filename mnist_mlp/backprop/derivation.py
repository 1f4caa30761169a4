"""The derivation of a value and its gradients, step by step, as text, Markdown and LaTeX; and the graph in DOT.

Numbers are rounded to six significant digits.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mnist_mlp.backprop.expression import FUNCTIONS
from mnist_mlp.backprop.passes import Passes

# A gradient is written out over all its paths while these have at most this many factors together: the number of paths
# can double with every node. Beyond that, it is written with the gradients of the nodes that use this one.
MAX_FACTORS = 48
MAX_USES = 12  # terms that are written out then
WIDTH = 100  # characters of a line of text
LATEX_ROW = 80  # characters of LaTeX up to which the parts of an equation share a row


class Equation(NamedTuple):
    """A chain of equalities, `parts[0] = parts[1] = ...`, with a note.

    The terms of a sum are separated by line ends, which a short equation shows as spaces.
    """

    parts: list[str]
    note: str = ""


class Section(NamedTuple):
    title: str
    equations: list[Equation]


class Notation:
    """How the terminal and Markdown write mathematics: Unicode, products as in the original report, x1 for x₁."""

    column = 0  # of FORMULAS and SLOPES
    times = " · "
    dots = "…"

    def name(self, name: str) -> str:
        return name.replace("-", "−")

    def number(self, value: float) -> str:
        return f"{value + 0.0:.6g}".replace("-", "−")  # + 0.0: no minus before a zero

    def partial(self, of: str, by: str) -> str:
        return f"∂{of}/∂{by}"

    def operand(self, text: str) -> str:
        """A name or a number within a formula."""
        return f"({text})" if text.startswith(("−", "-")) else text

    def product(self, factors: list[str]) -> str:
        def factor(text: str) -> str:
            return f"({text})" if len(factors) > 1 and " " in text and not text.startswith("[") else text

        return self.times.join(map(factor, factors))

    def sum(self, terms: list[str]) -> str:
        return "\n+ ".join([*terms[:1], *map(self.operand, terms[1:])])


class Latex(Notation):
    """LaTeX's mathematics, plain ASCII: x_{1}, \\frac, and parentheses around every negative factor but the first."""

    column = 1
    times = r" \cdot "
    dots = r"\cdots"

    def name(self, name: str) -> str:
        if not name[0].isalpha():
            return self._number(name)
        letters, rest = re.fullmatch(r"([A-Za-z]+)_?(\w*)", name, re.ASCII).groups()  # type: ignore[union-attr]
        base = letters if len(letters) == 1 else rf"\mathit{{{letters}}}"
        return base + ("_{" + rest.replace("_", r"\_") + "}" if rest else "")

    def number(self, value: float) -> str:
        return self._number(f"{value + 0.0:.6g}")

    def _number(self, digits: str) -> str:
        mantissa, _, exponent = digits.lower().partition("e")
        return rf"{mantissa} \times 10^{{{int(exponent)}}}" if exponent else mantissa

    def partial(self, of: str, by: str) -> str:
        return rf"\frac{{\partial {of}}}{{\partial {by}}}"

    def operand(self, text: str) -> str:
        return rf"\left({text}\right)" if text.startswith("-") or r"\times" in text else text

    def product(self, factors: list[str]) -> str:
        def factor(text: str, first: bool) -> str:
            compound = len(factors) > 1 and (" - " in text or (text.startswith("-") and not first))
            return rf"\left({text}\right)" if compound else text

        return self.times.join(factor(text, number == 0) for number, text in enumerate(factors))


# By operation: as text, as LaTeX. {a} and {b} are the operands.
FORMULAS = {
    "+": ("{a} + {b}", "{a} + {b}"),
    "-": ("{a} − {b}", "{a} - {b}"),
    "*": ("{a} · {b}", r"{a} \cdot {b}"),
    "/": ("{a} / {b}", r"\frac{{{a}}}{{{b}}}"),
    "**": ("{a}^{b}", "{{{a}}}^{{{b}}}"),
    "neg": ("−{a}", "-{a}"),
    "sqrt": ("√({a})", r"\sqrt{{{a}}}"),
    "exp": ("exp({a})", r"\exp\left({a}\right)"),
    "log": ("log({a})", r"\log\left({a}\right)"),
    "sin": ("sin({a})", r"\sin\left({a}\right)"),
    "cos": ("cos({a})", r"\cos\left({a}\right)"),
    "tanh": ("tanh({a})", r"\tanh\left({a}\right)"),
    "sigmoid": ("sigmoid({a})", r"\sigma\left({a}\right)"),
    "relu": ("relu({a})", r"\operatorname{{relu}}\left({a}\right)"),
    "max": ("max({a}, {b})", r"\max\left({a}, {b}\right)"),
    "min": ("min({a}, {b})", r"\min\left({a}, {b}\right)"),
}
# By operation and operand; {u} is the value. [condition] is 1 where the condition holds and 0 elsewhere.
SLOPES = {
    "+": (("1", "1"), ("1", "1")),
    "-": (("1", "1"), ("−1", "-1")),
    "*": (("{b}", "{b}"), ("{a}", "{a}")),
    "/": (("1/{b}", r"\frac{{1}}{{{b}}}"), ("−{a}/{b}²", r"-\frac{{{a}}}{{{{{b}}}^{{2}}}}")),
    "**": (
        ("{b} · {a}^({b} − 1)", r"{b} \cdot {{{a}}}^{{{b} - 1}}"),
        ("{u} · log({a})", r"{u} \cdot \log\left({a}\right)"),
    ),
    "neg": (("−1", "-1"),),
    "sqrt": (("1/(2 · {u})", r"\frac{{1}}{{2 \cdot {u}}}"),),
    "exp": (("{u}", "{u}"),),
    "log": (("1/{a}", r"\frac{{1}}{{{a}}}"),),
    "sin": (("cos({a})", r"\cos\left({a}\right)"),),
    "cos": (("−sin({a})", r"-\sin\left({a}\right)"),),
    "tanh": (("1 − {u}²", r"1 - {{{u}}}^{{2}}"),),
    "sigmoid": (("{u} · (1 − {u})", r"{u} \cdot \left(1 - {u}\right)"),),
    "relu": (("[{a} > 0]", "[{a} > 0]"),),
    "max": (("[{a} > {b}]", "[{a} > {b}]"), ("[{b} > {a}]", "[{b} > {a}]")),
    "min": (("[{a} < {b}]", "[{a} < {b}]"), ("[{b} < {a}]", "[{b} < {a}]")),
}


class Derivation:
    """Writes out both passes in one notation.

    Args:
        passes: a graph with its values and gradients.
        notation: how it writes mathematics.
    """

    def __init__(self, passes: Passes, notation: Notation) -> None:
        self.passes, self.notation = passes, notation
        self.nodes, self.output = passes.graph.nodes, passes.graph.output
        self.names = [notation.name(node.name) for node in self.nodes]
        self.uses = passes.uses()
        # Over all paths from a node up to the result: how many there are, and how many factors they have together.
        self.paths, self.factors = [0] * len(self.nodes), [0] * len(self.nodes)
        self.paths[self.output] = 1
        for index in reversed(range(self.output)):
            for user, _ in self.uses[index]:
                self.paths[index] += self.paths[user]
                self.factors[index] += self.factors[user] + self.paths[user]
            if self.factors[index] > MAX_FACTORS:  # what matters from here on; the true numbers can have any length
                self.paths[index] = self.factors[index] = MAX_FACTORS + 1

    def sections(self) -> list[Section]:
        """Forward; local derivatives; gradients of the intermediate nodes, from the result down, and of the inputs."""
        steps = [index for index, node in enumerate(self.nodes) if node.operands]
        distances = self.passes.distances()
        reached = sorted((i for i in steps if self.uses[i]), key=lambda index: distances[index])
        sections = [
            Section("Forward propagation", [self.forward(index) for index in steps]),
            Section("Local derivatives", [equation for index in steps for equation in self.local(index)]),
            Section("Gradients of the intermediate values", [self.chain(index) for index in reached]),
            Section("Gradients of the inputs", [self.chain(index) for index in self.passes.inputs()]),
            Section("Final gradients", [self.final(index) for index in self.passes.inputs()]),
        ]
        return [section for section in sections if section.equations]

    def forward(self, index: int) -> Equation:
        """q = x1 · w1 = 0.7 · (−1.5) = −1.05"""
        numbers = [self.notation.number(self.passes.values[operand]) for operand in self.nodes[index].operands]
        result = self.notation.number(self.passes.values[index])
        return Equation(_distinct([self.names[index], self.formula(index), self._formula(index, numbers), result]))

    def formula(self, index: int) -> str:
        """What a node computes, in names: x1 · w1"""
        return self._formula(index, [self.names[operand] for operand in self.nodes[index].operands])

    def _formula(self, index: int, operands: list[str]) -> str:
        operation = self.nodes[index].operation
        if operation not in FUNCTIONS:
            operands = [self.notation.operand(operand) for operand in operands]
        return FORMULAS[operation][self.notation.column].format(**dict(zip("ab", operands, strict=False)))

    def local(self, index: int) -> Iterator[Equation]:
        """∂q/∂x1 = w1 = −1.5, for each operand that has a gradient."""
        for slot, operand in enumerate(self.nodes[index].operands):
            slope = self.passes.slopes[index][slot]
            if slope is not None:
                left = self.notation.partial(self.names[index], self.names[operand])
                yield Equation(
                    _distinct([left, self.slope(index, slot), self.notation.number(slope)]), self._kink(index)
                )

    def slope(self, index: int, slot: int) -> str:
        """∂node/∂operand in names."""
        node = self.nodes[index]
        a, *rest = (self.notation.operand(self.names[operand]) for operand in node.operands)
        if node.operation == "**" and self.nodes[node.operands[1]].operation == "constant":
            exponent = float(self.nodes[node.operands[1]].name)
            if exponent in (0, 1):
                return self.notation.number(exponent)
            power = FORMULAS["**"][self.notation.column].format(
                a=a, b=self.notation.operand(self.notation.number(exponent - 1))
            )
            return self.notation.number(exponent) + self.notation.times + (a if exponent == 2 else power)
        b = rest[0] if rest else ""
        return SLOPES[node.operation][slot][self.notation.column].format(a=a, b=b, u=self.names[index])

    def _kink(self, index: int) -> str:
        node, values = self.nodes[index], self.passes.values
        if node.operation == "relu" and values[node.operands[0]] == 0:
            return "at the kink of relu: 0, as in PyTorch"
        if node.operation in ("max", "min") and values[node.operands[0]] == values[node.operands[1]]:
            return "a tie: one half to each, as in PyTorch"
        return ""

    def chain(self, index: int) -> Equation:
        """The chain rule over every path: in symbols, in names, in numbers, and its value."""
        notation = self.notation
        left = notation.partial(self.names[self.output], self.names[index])
        gradient = self.passes.gradients[index]
        if gradient is None:
            note = f"{self.nodes[self.output].name} does not depend on {self.nodes[index].name}"
            return Equation([left, "0"], note)
        forms, note = self._over_paths(index) if self.factors[index] <= MAX_FACTORS else self._over_uses(index)
        return Equation(_distinct([left, *map(notation.sum, forms), notation.number(gradient)]), note)

    def _over_paths(self, index: int) -> tuple[list[list[str]], str]:
        """The terms of a gradient, one for each path from the result, in each form; and no note."""
        paths = self._paths(index)
        symbols = [[self._partial(user, slot) for user, slot in path] for path in paths]
        names = [[self.slope(user, slot) for user, slot in path] for path in paths]
        slopes = [[self.passes.slopes[user][slot] or 0.0 for user, slot in path] for path in paths]
        product = self.notation.product
        return [list(map(product, symbols)), list(map(product, names)), *self._numbers(slopes)], ""

    def _over_uses(self, index: int) -> tuple[list[list[str]], str]:
        """The terms of a gradient, one for each use of the node, in each form; and a note that says so."""
        uses, notation, passes = self.uses[index][:MAX_USES], self.notation, self.passes
        output = self.names[self.output]
        symbols = [notation.product([notation.partial(output, self.names[u]), self._partial(u, s)]) for u, s in uses]
        slopes = [[passes.gradients[u] or 0.0, passes.slopes[u][s] or 0.0] for u, s in uses]
        forms, note = (
            [symbols, *self._numbers(slopes)],
            "too many paths to write out: from the gradients of what uses it",
        )
        if len(self.uses[index]) > MAX_USES:
            forms = [[*terms, notation.dots] for terms in forms]
            note += f", {len(self.uses[index])} uses"
        return forms, note

    def _partial(self, user: int, slot: int) -> str:
        """∂node/∂operand in symbols."""
        return self.notation.partial(self.names[user], self.names[self.nodes[user].operands[slot]])

    def _numbers(self, slopes: list[list[float]]) -> list[list[str]]:
        """The terms as products of numbers and, where there are several, as the numbers that they come to."""
        number = self.notation.number
        products = [self.notation.product(list(map(number, term))) for term in slopes]
        return [products, [number(math.prod(term)) for term in slopes]] if len(slopes) > 1 else [products]

    def _paths(self, index: int) -> list[list[tuple[int, int]]]:
        """Every path from the result down to a node, each a list of (node, operand slot)."""
        complete: list[list[tuple[int, int]]] = []
        growing: list[tuple[int, list[tuple[int, int]]]] = [(index, [])]
        while growing:
            top, path = growing.pop()
            if top == self.output:
                complete.append(path)
            growing += [(user, [(user, slot), *path]) for user, slot in reversed(self.uses[top])]
        return complete

    def final(self, index: int) -> Equation:
        left = self.notation.partial(self.names[self.output], self.names[index])
        return Equation([left, self.notation.number(self.passes.gradients[index] or 0.0)])


def _distinct(parts: list[str]) -> list[str]:
    """Without a part that repeats the one before."""
    return [part for number, part in enumerate(parts) if number == 0 or part != parts[number - 1]]


def plain(equation: Equation, indent: str = "") -> str:
    """An equation as one line of text, or where that is longer than `WIDTH` as several, aligned at the equals signs."""
    note = f"   ({equation.note})" if equation.note else ""
    one = indent + " = ".join(equation.parts).replace("\n", " ") + note
    if len(one) <= WIDTH:
        return one
    left, *rest = equation.parts
    below = "\n" + indent + " " * len(left)
    return f"{indent}{left} = " + f"{below} = ".join(part.replace("\n", below + " ") for part in rest) + note


def terminal(sections: list[Section]) -> str:
    """Sections in plain `Notation`, for the terminal."""
    return "\n\n".join(
        "\n".join([section.title, *(plain(equation, "  ") for equation in section.equations)]) for section in sections
    )


def markdown(passes: Passes, sections: list[Section], proof: str) -> str:
    """Sections in plain `Notation` as a Markdown document."""
    blocks = [f"# Forward and backward, by hand\n\n```text\n{passes.graph.text.strip()}\n```"]
    for section in sections:
        equations = "\n".join(map(plain, section.equations))
        blocks.append(f"## {section.title}\n\n```text\n{equations}\n```")
    return "\n\n".join([*blocks, proof]) + "\n"


def latex(sections: list[Section], proof: str) -> str:
    """Sections in `Latex` notation as a document for any LaTeX with amsmath."""
    blocks = []
    for section in sections:
        equations = "\\\\\n".join(map(_aligned, section.equations))
        blocks.append(f"\\section*{{{section.title}}}\n\\begin{{align*}}\n{equations}\n\\end{{align*}}")
    head = "\\documentclass{article}\n\\usepackage{amsmath}\n\\allowdisplaybreaks\n\\begin{document}\n"
    return head + "\n\n".join([*blocks, proof]) + "\n\\end{document}\n"


def _aligned(equation: Equation) -> str:
    """An equation as rows of LaTeX's `align`."""
    left, *rest = equation.parts
    escaped = equation.note.replace("_", r"\_")
    note = rf" \quad \text{{({escaped})}}" if escaped else ""
    short = sum(map(len, rest)) < LATEX_ROW
    row, term = (" = ", " ") if short else ("\\\\\n  &= ", "\\\\\n  &\\quad ")
    return rf"{left} &= " + row.join(part.replace("\n", term) for part in rest) + note


def dot(passes: Passes) -> str:
    """The graph in Graphviz's language, values and gradients included."""
    derivation = Derivation(passes, Notation())
    number = derivation.notation.number

    def statements() -> Iterator[str]:
        for index, node in enumerate(passes.graph.nodes):
            name, gradient = derivation.names[index], passes.gradients[index]
            lines = [f"{name} = {derivation.formula(index)}"] if node.operands else []
            lines += [name if node.operation == "constant" else f"{name} = {number(passes.values[index])}"]
            if gradient is not None and node.operation != "constant":
                lines.append(f"∂{derivation.names[passes.graph.output]}/∂{name} = {number(gradient)}")
            text = r"\n".join(lines)
            yield f'  n{index} [label="{text}", shape={"box" if node.operands else "ellipse"}];'
            for slot, operand in enumerate(node.operands):
                slope = passes.slopes[index][slot]
                passed = f' [label="{number((passes.gradients[index] or 0.0) * slope)}"]' if slope is not None else ""
                yield f"  n{operand} -> n{index}{passed};"

    return "\n".join(["digraph backprop {", "  rankdir=LR;", *statements(), "}"]) + "\n"
