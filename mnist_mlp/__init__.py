"""Two MLPs on MNIST, two experiments, and reruns that come out the same."""

__version__ = "0.1.0"
