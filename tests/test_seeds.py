from mnist_mlp.seeds import stream_seed


def test_the_value_is_pinned() -> None:
    # printf 7/order/3 | sha256sum | cut -c1-16 prints 19cd16803fef73ea; read little-endian, shifted right by one bit.
    assert stream_seed(7, "order", 3) == int.from_bytes(bytes.fromhex("19cd16803fef73ea"), "little") >> 1


def test_streams_differ_and_fit_torch() -> None:
    seeds = {stream_seed(s, n, e) for s in range(5) for n in ("weights", "order", "dropout", "split") for e in range(5)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
