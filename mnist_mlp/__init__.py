"""Two MLPs on MNIST, two experiments, and reruns that come out the same."""

import warnings

__version__ = "0.1.0"

# Lightning 2.6.6 uses a torch 2.14 name that is deprecated; nothing a user of this package could change.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
# Where Slurm is installed Lightning takes every run for one of several processes that was started wrongly.
warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
