"""Part I of the original report for any expression: both passes by hand, shown and proved right. `command.py` comes
first.

- `command.py`: `mnist-backprop`
- `expression.py`: parses an expression into a computational graph
- `passes.py`: the table of slopes; computes values and gradients, and compares them with autograd's
- `derivation.py`: shows the same slopes; writes every step as text, Markdown and LaTeX, and the graph in DOT
- `layout.py`: places nodes and edges
- `graph.py`: draws the graph frame by frame
- `network.py`: both passes of one image through a network
"""
