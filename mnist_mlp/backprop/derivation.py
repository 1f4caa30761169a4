"""The derivation of a value and its gradients, step by step, as text, Markdown and LaTeX; and the graph in DOT.

∂u/∂x is local: u by its operand x alone. df/dx is the gradient of the result f, over all paths. Numbers are rounded to
six significant digits.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mnist_mlp.backprop.expression import FUNCTIONS
from mnist_mlp.backprop.passes import Passes

MAX_PATH = 3  # local derivatives up to which an input's only path is written out too, as the original report does
MAX_USES = 12  # terms of a gradient that are written out
WIDTH = 100  # characters of a line of text
LATEX_WIDTH = 62  # characters that fit in a row of LaTeX's article


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
    # The general chain rule, for a result and operand of these names.
    chain_rule = ("d{f}/dx", "Σ d{f}/du · ∂u/∂x")

    def name(self, name: str) -> str:
        return name.replace("-", "−")

    def number(self, value: float) -> str:
        mantissa, e, exponent = f"{value + 0.0:.6g}".partition("e")  # + 0.0: no minus before a zero
        return self.name(f"{mantissa}e{int(exponent)}" if e else mantissa)

    def local(self, of: str, by: str, which: int = 0) -> str:
        """∂of/∂by; `which` tells the first from the second where both operands are the same node."""
        return f"∂{of}/∂{by}{('', '⁽¹⁾', '⁽²⁾')[which]}"

    def gradient(self, of: str, by: str) -> str:
        return f"d{of}/d{by}"

    def operand(self, text: str) -> str:
        """A name or a number within a formula."""
        return f"({text})" if text.startswith(("−", "-")) else text

    def product(self, factors: list[str]) -> str:
        def factor(text: str) -> str:
            compound = (" " in text and not text.startswith("[")) or text.startswith("−")
            return f"({text})" if compound and len(factors) > 1 else text

        return self.times.join(map(factor, factors))

    def sum(self, terms: list[str]) -> str:
        """Its terms, each on a line of its own; a negative number among several is in parentheses."""
        negative = ("−", "-") if len(terms) > 1 else ()
        return "\n+ ".join(self.operand(term) if term.startswith(negative) else term for term in terms)


class Latex(Notation):
    """LaTeX's mathematics, plain ASCII: x_{1}, \\frac."""

    column = 1
    times = r" \cdot "
    dots = r"\cdots"
    chain_rule = (
        r"\frac{{d{f}}}{{dx}}",
        r"\sum_{{u}} \frac{{d{f}}}{{du}} \cdot \frac{{\partial u}}{{\partial x}}",
    )

    def name(self, name: str) -> str:
        """x1 is x with a subscript, and so is x_b; the underscore of x_1 stays, since that is another name."""
        if not name[0].isalpha():  # the digits of a number
            mantissa, _, exponent = name.lower().partition("e")
            return rf"{mantissa} \times 10^{{{int(exponent)}}}" if exponent else mantissa
        letters, rest = re.fullmatch(r"([A-Za-z]+)(?:_(?=[A-Za-z]))?(\w*)", name, re.ASCII).groups()  # type: ignore[union-attr]
        base = letters if len(letters) == 1 else rf"\mathit{{{letters}}}"
        return base + ("_{" + rest.replace("_", r"\_") + "}" if rest else "")

    def local(self, of: str, by: str, which: int = 0) -> str:
        by = f"{{{by}}}^{{({which})}}" if which else by
        return rf"\frac{{\partial {of}}}{{\partial {by}}}"

    def gradient(self, of: str, by: str) -> str:
        return rf"\frac{{d{of}}}{{d{by}}}"

    def operand(self, text: str) -> str:
        return rf"\left({text}\right)" if text.startswith("-") or r"\times" in text else text

    def product(self, factors: list[str]) -> str:
        def factor(text: str) -> str:
            return rf"\left({text}\right)" if len(factors) > 1 and (" - " in text or text.startswith("-")) else text

        return self.times.join(map(factor, factors))


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
# By operation and operand; {u} is the value. [condition] is 1 where the condition holds and 0 elsewhere. Of two forms,
# the first is the one to remember and the second the one to compute: it loses no digits.
SLOPES = {
    "+": (("1", "1"), ("1", "1")),
    "-": (("1", "1"), ("−1", "-1")),
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
    "tanh": (("1 − {u}² = 1/cosh({a})²", r"1 - {{{u}}}^{{2}} = \frac{{1}}{{\cosh\left({a}\right)^{{2}}}}"),),
    "sigmoid": (
        (
            "{u} · (1 − {u}) = {u} · sigmoid(−{a})",
            r"{u} \cdot \left(1 - {u}\right) = {u} \cdot \sigma\left(-{a}\right)",
        ),
    ),
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

    def sections(self) -> list[Section]:
        """All sections that have equations; the gradients of the intermediate nodes go from the result down."""
        steps = [index for index, node in enumerate(self.nodes) if node.operands]
        distances = self.passes.distances()
        reached = sorted((i for i in steps if self.uses[i]), key=lambda index: distances[index])
        locals_ = [equation for index in steps for equation in self.locals(index)]
        sections = [
            Section("Notation", list(self.legend(locals_)) if locals_ else []),
            Section("Forward propagation", [self.forward(index) for index in steps]),
            Section("Local derivatives", locals_),
            Section("Gradients of the intermediate values", [self.chain(index) for index in reached]),
            Section("Gradients of the inputs", [self.chain(index) for index in self.passes.inputs()]),
            Section("Final gradients", [self.final(index) for index in self.passes.inputs()]),
        ]
        return [section for section in sections if section.equations]

    def legend(self, locals_: list[Equation]) -> Iterator[Equation]:
        """What the symbols mean, of those that the local derivatives have."""
        local, f = self.notation.local, self.names[self.output]
        yield Equation([local("u", "x")], "local: how u changes with its operand x alone")
        if any(len(set(node.operands)) < len(node.operands) for node in self.nodes):
            yield Equation([f"{local('u', 'x', 1)}, {local('u', 'x', 2)}"], "where x is both operands of u")
        chain_rule = [part.format(f=f) for part in self.notation.chain_rule]
        yield Equation(chain_rule, "gradient: the sum over every u that uses x")
        if any(part.startswith("[") for equation in locals_ for part in equation.parts):
            yield Equation(["[x > 0]"], "1 where this holds, 0 elsewhere")

    def forward(self, index: int) -> Equation:
        """q = x1 · w1 = 0.7 · (−1.5) = −1.05"""
        node, values = self.nodes[index], self.passes.values
        numbers = [self.notation.number(values[operand]) for operand in node.operands]
        parts = [self.names[index], self.formula(index), self._formula(index, numbers)]
        zeros = node.operation == "**" and all(values[operand] == 0 for operand in node.operands)
        note = "0^0 counts as 1, as in PyTorch" if zeros else ""
        return Equation(_distinct([*parts, self.notation.number(values[index])]), note)

    def formula(self, index: int) -> str:
        """What a node computes, in names: x1 · w1"""
        return self._formula(index, [self.names[operand] for operand in self.nodes[index].operands])

    def _formula(self, index: int, operands: list[str]) -> str:
        operation = self.nodes[index].operation
        if operation not in FUNCTIONS and not (operation == "/" and isinstance(self.notation, Latex)):
            operands = [self.notation.operand(operand) for operand in operands]
        return FORMULAS[operation][self.notation.column].format(**dict(zip("ab", operands, strict=False)))

    def locals(self, index: int) -> Iterator[Equation]:
        """∂q/∂x1 = w1 = −1.5, for each operand that has a gradient."""
        for slot, slope in enumerate(self.passes.slopes[index]):
            if slope is not None:
                parts = [self.local(index, slot), *self._forms(index, slot), self.notation.number(slope)]
                yield Equation(_distinct(parts), self._convention(index, slot))

    def local(self, index: int, slot: int) -> str:
        """∂node/∂operand in symbols."""
        operands = self.nodes[index].operands
        which = slot + 1 if operands.count(operands[slot]) > 1 else 0
        return self.notation.local(self.names[index], self.names[operands[slot]], which)

    def _forms(self, index: int, slot: int) -> list[str]:
        """∂node/∂operand in names: one form or two; none where its value is a convention."""
        if self._convention(index, slot):
            return []
        node, notation = self.nodes[index], self.notation
        if node.operation == "*":
            return [self.names[node.operands[1 - slot]]]
        a, *rest = (notation.operand(self.names[operand]) for operand in node.operands)
        if node.operation == "**" and self.nodes[node.operands[1]].operation == "constant":
            exponent = float(self.nodes[node.operands[1]].name)
            if exponent in (0, 1):
                return [notation.number(exponent)]
            below = notation.operand(notation.number(exponent - 1))
            power = a if exponent == 2 else FORMULAS["**"][notation.column].format(a=a, b=below)
            return [notation.product([notation.number(exponent), power])]
        forms = SLOPES[node.operation][slot][notation.column]
        return forms.format(a=a, b=rest[0] if rest else "", u=self.names[index]).split(" = ")

    def _convention(self, index: int, slot: int) -> str:
        """Why a local derivative is what it is where the function has none, or its formula no value."""
        node, values = self.nodes[index], [self.passes.values[operand] for operand in self.nodes[index].operands]
        if node.operation == "relu" and values[0] == 0:
            return "at the kink of relu: 0, as in PyTorch"
        if node.operation in ("max", "min") and values[0] == values[1]:
            return "a tie: one half to each operand, as in PyTorch"
        if node.operation != "**" or values[0] != 0:
            return ""
        if slot == 1:
            return "0^b is 0 for every b > 0" if values[1] else "0^b by b at b = 0: 0, as in PyTorch"
        conventions = {0.0: "x^0 counts as 1 for every x", 1.0: "0^0 counts as 1, as in PyTorch"}
        return conventions.get(values[1], "")

    def gradient(self, index: int) -> str:
        """df/dnode in symbols."""
        return self.notation.gradient(self.names[self.output], self.names[index])

    def chain(self, index: int) -> Equation:
        """The chain rule from the gradients of what uses a node: in symbols, in numbers, and its value."""
        uses, notation, gradient = self.uses[index], self.notation, self.passes.gradients[index]
        if gradient is None:
            note = f"{self.nodes[self.output].name} does not depend on {self.nodes[index].name}"
            return Equation([self.gradient(index), "0"], note)
        if index == self.output:  # an input may be the result
            return self.final(index)
        number = notation.number
        forms, numbers = self._terms(index, uses[:MAX_USES])
        forms.append([list(map(number, term)) for term in numbers])
        if len(uses) > 1:
            forms.append([[number(math.prod(term))] for term in numbers])
        more = [notation.dots] if len(uses) > MAX_USES else []
        sums = [notation.sum([*map(notation.product, terms), *more]) for terms in forms]
        return Equation(
            _distinct([self.gradient(index), *sums, number(gradient)]), f"{len(uses)} terms" if more else ""
        )

    def _terms(self, index: int, uses: list[tuple[int, int]]) -> tuple[list[list[list[str]]], list[list[float]]]:
        """The factors of each term of the chain rule: in symbols, in one form or more, and in numbers."""
        passes = self.passes
        # Of the result itself, the gradient is 1 and is left out.
        forms = [[[self.gradient(u), self.local(u, s)][u == self.output :] for u, s in uses]]
        numbers = [[passes.gradients[u] or 0.0, passes.slopes[u][s] or 0.0][u == self.output :] for u, s in uses]
        if all(user == self.output for user, _ in uses):
            forms.append([[self._first_form(*use)] for use in uses])
        elif self.nodes[index].operation == "input" and (path := self._only_path(index)):
            forms += [[[self.local(*use) for use in path]], [[self._first_form(*use) for use in path]]]
            numbers = [[passes.slopes[u][s] or 0.0 for u, s in path]]
        return forms, numbers

    def _first_form(self, user: int, slot: int) -> str:
        """A local derivative as a factor of a product."""
        return [*self._forms(user, slot), self.notation.number(self.passes.slopes[user][slot] or 0.0)][0]

    def _only_path(self, index: int) -> list[tuple[int, int]]:
        """The path from the result down to a node, as (node, operand slot); empty if it is long or one of several."""
        path: list[tuple[int, int]] = []
        while index != self.output:
            if len(self.uses[index]) > 1 or len(path) == MAX_PATH:
                return []
            path.insert(0, self.uses[index][0])
            index = path[0][0]
        return path

    def final(self, index: int) -> Equation:
        return Equation([self.gradient(index), self.notation.number(self.passes.gradients[index] or 0.0)])


def _distinct(parts: list[str]) -> list[str]:
    """Without a part that repeats the one before."""
    return [part for number, part in enumerate(parts) if number == 0 or part != parts[number - 1]]


def plain(equation: Equation, indent: str = "") -> str:
    """An equation as a line of text, or as several, aligned at the equals signs."""
    left, *rest = equation.parts
    margin = indent + " " * (len(left) + 1)
    rows = _rows(rest, f"  ({equation.note})" if equation.note else "", WIDTH - len(margin), len)
    return f"{indent}{left} " + f"\n{margin}".join(f"  {row}" if row.startswith("+") else row for row in rows)


def _rows(parts: list[str], note: str, width: int, measure: Callable[[str], int]) -> list[str]:
    """`= part = part note` in rows: breaks at equals signs, and between the terms of a sum that is wider than a row."""
    pieces: list[str] = []
    for part in parts:
        whole = "= " + part.replace("\n", " ")
        pieces += [whole] if measure(whole) <= width else f"= {part}".split("\n")
    first, *others = [*pieces, note] if note else pieces
    rows = [first]
    for piece in others:
        if measure(longer := f"{rows[-1]} {piece}") <= width:
            rows[-1] = longer
        else:
            rows.append(piece)
    return rows


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
    note = equation.note.replace("_", r"\_").replace("^", r"\^{}")
    note = rf"\quad \text{{({note})}}" if note else ""
    rows = _rows(rest, note, LATEX_WIDTH - _characters(left), _characters)
    return rf"{left} &" + "\\\\\n  &".join(rf"\quad {row}" if row.startswith("+") else row for row in rows)


def _characters(source: str) -> int:
    """About how many characters wide LaTeX shows a formula."""
    source = re.sub(r"\\(?:left|right|frac|mathit|operatorname|text|quad)|[{}_^]", "", source)
    return len(re.sub(r"\\[a-z]+", "m", source))


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
                lines.append(f"{derivation.gradient(index)} = {number(gradient)}")
            text = r"\n".join(lines)
            yield f'  n{index} [label="{text}", shape={"box" if node.operands else "ellipse"}];'
            for slot, operand in enumerate(node.operands):
                slope = passes.slopes[index][slot]
                passed = f' [label="{number((passes.gradients[index] or 0.0) * slope)}"]' if slope is not None else ""
                yield f"  n{operand} -> n{index}{passed};"

    return "\n".join(["digraph backprop {", "  rankdir=LR;", *statements(), "}"]) + "\n"
