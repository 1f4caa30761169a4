"""Random numbers: every consumer draws from a stream of its own, derived from the run's one seed.

A stream is a function of (seed, name, epoch) alone. Changing how many numbers one consumer draws (another
backbone, dropout switched on) therefore shifts nothing for the others, and an epoch can be repeated without
having run those before it.
"""

import hashlib


def stream_seed(seed: int, name: str, epoch: int = 0) -> int:
    """The seed of one stream of random numbers.

    Args:
        seed: the run's seed, or the split's; any integer, 0 included.
        name: what is drawn: `weights`, `order`, `transform/EPOCH`, `dropout`, `split`, `validation` or `search`.
        epoch: counted from 0, for streams that start afresh each epoch; of `search`, each trial; of a transform, each
            minibatch.

    Returns:
        An integer in [0, 2**63): the first 8 bytes of SHA-256("<seed>/<name>/<epoch>"), less the sign bit, which
        `torch.manual_seed` and `torch.Generator.manual_seed` both take.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
