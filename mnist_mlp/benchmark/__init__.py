"""The training loop beside other ways to train the same network. `command.py` comes first.

- `command.py`: `mnist-benchmark`: starts the contenders, and prints and saves what they took
- `peers.py`: the contenders, each in a process of its own
"""
