"""How a group of minibatches is stepped fast.

Open choice.py first: trainer.steps, and when it is which.

native.py     the Python side of the kernel
kernel/       the kernel: steps of an MLP, in C++
compiled.py   several steps of any backbone as one graph of TorchInductor
means.py      sums of losses and errors over an epoch
"""
