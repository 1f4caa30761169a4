"""Two MLPs on MNIST, two experiments, and reruns that come out the same."""

import logging
import warnings

__version__ = "0.1.0"

# Lightning announces devices, limits and its own cloud at every run; what a user must know comes as a warning.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# Lightning 2.6.6 uses a torch 2.14 name that is deprecated; nothing a user of this package could change.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
