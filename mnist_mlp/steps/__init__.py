"""How a group of minibatches is stepped fast.

Open choice.py first: trainer.steps, and when it is which.

native.py          the Python side of the kernel: what it can step, and what it is given
kernel/network.h   one step of an MLP: forward, backward, clipping, optimizer; and evaluation
kernel/product.h   products of matrices, tile by tile
kernel/random.h    Philox, for dropout's masks
kernel/vector.h    vectors of any width, exp and log
kernel/steps.cpp   what Python calls: memory, threads, and the choice of a code path
kernel/*.cpp       the other three: one compilation of network.h for each code path
refusal.py         why a kind of steps cannot be made: what each of the three tells
captured.py        the steps of a group as one CUDA graph
compiled.py        several steps of any backbone as one graph of TorchInductor
cache.py           what a power cut left in TorchInductor's cache
means.py           sums of losses and errors over an epoch
"""
