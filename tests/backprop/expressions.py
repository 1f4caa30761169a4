"""Random expressions in Python's own syntax, for tests that let Python work out the same text."""

import math
import random

# What the functions are in plain floating point.
NAMESPACE = {
    **{name: getattr(math, name) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh")},
    "sigmoid": lambda x: 0.5 * (1 + math.tanh(x / 2)),
    "relu": lambda x: x if x > 0 else 0.0,
    "max": max,
    "min": min,
}
VALUE = [
    "({} + {})",
    "({} - {})",
    "{} * {}",
    "{} / (1.5 + {} ** 2)",
    "max({}, {})",
    "min({}, {} * 0.7)",
    "sin({})",
    "cos({})",
    "tanh({})",
    "sigmoid({})",
    "relu({})",
    "-{}",
    "exp(sin({}))",
    "log(1.5 + {} ** 2)",
    "sqrt(0.5 + {} ** 2)",
    "(0.5 + {} ** 2) ** tanh({})",
    "{} ** 3",
    "2 ** tanh({})",
]


def random_expression(generator: random.Random) -> tuple[str, dict[str, float]]:
    """Three statements, the last of them f, that share subexpressions, and a value for each of their variables.

    Every function is called where it is smooth enough for central differences, kinks aside.
    """
    values = {name: generator.uniform(-1.8, 1.8) for name in ("x", "y", "z")}
    known = list(values)
    statements = []
    for target in ("q", "s", "f"):
        text = generator.choice(known)
        for _ in range(generator.randint(2, 5)):
            form = generator.choice(VALUE)
            slots = [f"({text})"]
            while len(slots) < form.count("{}"):
                slots.append(generator.choice([*known, f"{generator.uniform(0.2, 2):.3f}"]))
            generator.shuffle(slots)
            text = form.format(*slots)
        statements.append(f"{target} = {text}")
        known.append(target)
    text = "; ".join(statements)
    return text, {name: value for name, value in values.items() if name in text.replace("exp", "").replace("max", "")}
