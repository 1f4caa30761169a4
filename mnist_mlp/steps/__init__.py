"""How a group of minibatches is stepped fast.

Open native.py first: the Python side of the kernel in kernel/. compiled.py compiles several steps into one graph.
"""
