"""From the text of an expression to its computational graph.

An operator-precedence parser (Dijkstra's shunting yard) that loops and never recurses: Python's own `ast` gives up on
sums of some thousand terms and on a few hundred nested parentheses. Nothing is ever executed: what is not in the
grammar below (attributes, strings, comprehensions) cannot be said.

    statements  one or more, separated by `;` or a line's end; each but the last is `name = value`
    value       numbers, names, + - * / ** and calls of a function, with Python's precedences; also × · ÷ − and ^
"""

import math
import re
from typing import NamedTuple, NoReturn

from mnist_mlp.settings import SettingError, counted

FUNCTIONS = dict.fromkeys(("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "relu"), 1) | {"max": 2, "min": 2}
SPELLINGS = {"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "**": 4}
TOKEN = re.compile(
    r"(?P<number>(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<symbol>\*\*|[-+*/^(),;=×÷·−\n])|[ \t\r]+",
    re.ASCII,
)
EXCERPT = 70  # characters of the expression shown around an error


class ExpressionError(SettingError):
    """An expression that cannot be worked out: one sentence, and below it the place in the expression."""

    def __init__(self, text: str, place: int, problem: str) -> None:
        start = max(text.rfind("\n", 0, place) + 1, place - EXCERPT // 2)
        line = text[start:].split("\n")[0]
        before, after = "…" if start and text[start - 1] != "\n" else "", "…" if len(line) > EXCERPT else ""
        excerpt = before + line[:EXCERPT].replace("\t", " ") + after
        # Not SettingError's own form: the excerpt stands for the value.
        ValueError.__init__(self, f"expression: {problem}\n  {excerpt}\n  {' ' * (len(before) + place - start)}^")


class Node(NamedTuple):
    """A value of the graph.

    Attributes:
        name: as in the expression; v1, v2, ... where it has none there; of a constant, its digits.
        operation: `input`, `constant`, a function, `neg` or a binary operator.
        operands: positions in the graph of what it is computed from, each before its own.
        place: of its operator, function or name in the expression.
    """

    name: str
    operation: str
    operands: tuple[int, ...]
    place: int


class Graph(NamedTuple):
    """A parsed expression: nodes in an order in which they can be computed, and which of them is the result."""

    text: str
    nodes: list[Node]
    output: int


class Token(NamedTuple):
    kind: str  # number, name, symbol or end
    text: str
    place: int


def parse(text: str) -> Graph:
    """The computational graph of an expression. Names that no statement defines are its inputs.

    Raises:
        ExpressionError: the text is not of the grammar above.
    """
    return _Parser(text).graph()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.nodes: list[Node] = []
        self.names: dict[str, int] = {}
        # Of the value that is being read:
        self.values: list[int] = []  # the nodes that no operator has taken yet
        self.waiting: list[Token] = []  # operators, parentheses and calls whose right-hand side is not complete
        self.commas: list[int] = []  # seen so far in each of the parentheses and calls in `waiting`

    def graph(self) -> Graph:
        statements = self._statements()
        if not statements:
            self._fail(0, "it is empty: write one such as 'q = x*w; f = q + 1'")
        output = -1
        for number, statement in enumerate(statements, 1):
            target = None
            if statement[0].kind == "name" and statement[1].text == "=":
                target, statement = statement[0], statement[2:]
                if target.text in FUNCTIONS:
                    self._fail(target.place, f"{target.text} is a function and cannot be a name")
            output = self._value(statement)
            if not target and number < len(statements):
                self._fail(statement[0].place, "a statement before the last must be named: name = ...")
            if target and target.text in self.names:
                first = self.nodes[self.names[target.text]]
                used = first.operation == "input" and first.name == target.text
                self._fail(target.place, f"{target.text} is {'used before it is defined' if used else 'defined twice'}")
            if target:
                self.names[target.text] = output
                if not self.nodes[output].name:  # else it is a second name of a node that has one
                    self.nodes[output] = self.nodes[output]._replace(name=target.text)
        self._name_the_rest(output)
        return Graph(self.text, self.nodes, output)

    def _fail(self, place: int, problem: str) -> NoReturn:
        raise ExpressionError(self.text, place, problem)

    def _statements(self) -> list[list[Token]]:
        """The statements' tokens, each list closed by an `end` token; empty statements are left out."""
        statements: list[list[Token]] = [[]]
        position = depth = 0
        while position < len(self.text):
            match = TOKEN.match(self.text, position)
            if not match:
                self._fail(position, f"{self.text[position]!r} is not arithmetic")
            kind, word = match.lastgroup or "", SPELLINGS.get(match[0], match[0])
            depth += (word == "(") - (word == ")")
            if word == ";" or (word == "\n" and depth <= 0):
                statements[-1].append(Token("end", "", position))
                statements.append([])
                depth = 0
            elif kind and word != "\n":
                statements[-1].append(Token(kind, word, position))
            position = match.end()
        statements[-1].append(Token("end", "", len(self.text.rstrip())))
        return [statement for statement in statements if len(statement) > 1]

    def _value(self, tokens: list[Token]) -> int:
        """Adds the nodes of one value to the graph.

        Returns:
            The position of its result.
        """
        self.values, self.waiting, self.commas = [], [], []
        value_next = True
        for index, token in enumerate(tokens):
            if value_next:
                # Beyond both ends stands the token `end`, which is the last.
                value_next = self._start_of_value(tokens[index - 1], token, tokens[min(index + 1, len(tokens) - 1)])
            else:
                value_next = self._after_value(token)
        self._apply_while(1)
        if self.waiting:
            opened = self.waiting[-1].place
            self._fail(self.text.index("(", opened), "this parenthesis is never closed")
        return self.values[0]

    def _start_of_value(self, before: Token, token: Token, after: Token) -> bool:
        """Takes a token where a value is expected.

        Returns:
            Whether one is still expected.
        """
        kind, word, place = token
        if kind == "number":
            self.values.append(self._constant(token))
            return False
        if kind == "name" and after.text == "(":
            if word not in FUNCTIONS:
                self._fail(place, f"there is no function {word}; there are {', '.join(sorted(FUNCTIONS))}")
        elif kind == "name":
            self.values.append(self._variable(token))
            return False
        elif word == "(":
            self.waiting.append(before if before.kind == "name" else token)
            self.commas.append(0)
        elif word == "-":
            self.waiting.append(Token("symbol", "neg", place))
        elif word != "+":  # a sign that changes nothing
            what = "the expression ends" if kind == "end" else f"{word} stands"
            self._fail(place, f"{what} where a value is expected")
        return True

    def _after_value(self, token: Token) -> bool:
        """Takes a token where a value has just ended.

        Returns:
            Whether one is expected next.
        """
        kind, word, place = token
        if word in PRECEDENCE:
            self._apply_while(PRECEDENCE[word] + (word == "**"))  # powers group from the right
            self.waiting.append(token)
        elif word == ",":
            self._apply_while(1)
            if not self.waiting or self.waiting[-1].kind != "name":
                self._fail(place, "a comma can only stand between a function's arguments")
            self.commas[-1] += 1
        elif word == ")":
            self._apply_while(1)
            if not self.waiting:
                self._fail(place, "this parenthesis was never opened")
            self._close(self.waiting.pop(), self.commas.pop() + 1)
        elif kind != "end":
            problem = "= can only follow the name at a statement's start" if word == "=" else None
            self._fail(place, problem or f"an operator is expected before {word}")
        return word in PRECEDENCE or word == ","

    def _apply_while(self, precedence: int) -> None:
        """Applies the waiting operators of at least this precedence to the newest values."""
        while self.waiting and PRECEDENCE.get(self.waiting[-1].text, 0) >= precedence:
            operator = self.waiting.pop()
            self._apply(operator, 1 if operator.text == "neg" else 2)

    def _close(self, opened: Token, count: int) -> None:
        """Ends what a parenthesis opened: a call with this many arguments, or nothing but a parenthesis."""
        if opened.kind != "name":
            return
        if count != (wanted := FUNCTIONS[opened.text]):
            given = f"{counted(wanted, 'value')}, not {count}"
            self._fail(opened.place, f"{opened.text} takes {given}")
        self._apply(opened, count)

    def _apply(self, operator: Token, count: int) -> None:
        self.values[-count:] = [self._node(operator, tuple(self.values[-count:]))]

    def _node(self, token: Token, operands: tuple[int, ...]) -> int:
        operand = self.nodes[operands[0]]
        if token.text == "neg" and operand.operation == "constant" and operand.place > token.place:
            self.nodes[-1] = operand._replace(name=f"-{operand.name}".replace("--", ""))  # the constant -1, not neg 1
            return operands[0]
        self.nodes.append(Node("", token.text, operands, token.place))
        return len(self.nodes) - 1

    def _constant(self, token: Token) -> int:
        if math.isinf(float(token.text)):
            self._fail(token.place, f"{token.text} overflows (the largest number is about 1.8e308)")
        self.nodes.append(Node(token.text, "constant", (), token.place))
        return len(self.nodes) - 1

    def _variable(self, token: Token) -> int:
        if token.text in FUNCTIONS:
            self._fail(token.place, f"{token.text} is a function: write {token.text}(...)")
        if token.text.startswith("_"):
            self._fail(token.place, f"{token.text} is not arithmetic: a name begins with a letter")
        if token.text not in self.names:
            self.names[token.text] = len(self.nodes)
            self.nodes.append(Node(token.text, "input", (), token.place))
        return self.names[token.text]

    def _name_the_rest(self, output: int) -> None:
        """f for a result without a name, v1, v2, ... for other nodes; names that the expression uses are skipped."""
        if not self.nodes[output].name and "f" not in self.names:
            self.nodes[output] = self.nodes[output]._replace(name="f")
        number = 0
        for index, node in enumerate(self.nodes):
            while not node.name:
                number += 1
                if f"v{number}" not in self.names:
                    node = self.nodes[index] = node._replace(name=f"v{number}")
