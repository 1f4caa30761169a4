"""How a group of minibatches is stepped fast. compiled.py compiles several steps into one graph."""
