"""Pictures as PNG and SVG, for the rooms that draw. `shapes.py` comes first.

- `shapes.py`: boxes, lines and texts, without matplotlib
- `architecture.py`: the layers of a network
- `figure.py`: a matplotlib figure as bytes
"""
