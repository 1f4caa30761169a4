// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011): random words as a function of a counter and a key.

// One word of each of the counters (first, c1, c2, c3), (first + 1, c1, c2, c3), ...: pairs of words lie side by side.
struct Words {
  W low, high;  // words 0 and 1 of every counter in turn; words 2 and 3
};
INLINE Words philox(std::uint32_t first, const std::uint32_t *rest, const std::uint32_t *key) {
  // 32 bits in a lane of 64: what is above them is ignored.
  U c0 = {}, c1 = rest[0] - U{}, c2 = rest[1] - U{}, c3 = rest[2] - U{};
  for (int i = 0; i < LANES / 2; ++i) c0[i] = first + (std::uint32_t)i;
  std::uint32_t k0 = key[0], k1 = key[1];
  UNROLL for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    const U p0 = multiply_low(c0, 0xD2511F53 - U{}), p1 = multiply_low(c2, 0xCD9E8D57 - U{});
    c0 = (p1 >> 32) ^ c1 ^ (k0 - U{});
    c2 = (p0 >> 32) ^ c3 ^ (k1 - U{});
    c1 = p1;
    c3 = p0;
  }
  const U mask = 0xffffffffu - U{};
  return {(W)((c0 & mask) | (c1 << 32)), (W)((c2 & mask) | (c3 << 32))};
}

// Words for a row of elements, to `end(first element, words)`. Each 64 elements take 16 counters: the first 32 words 0
// and 1 of each, the others words 2 and 3. `count` is a multiple of 16; `rest`: the counter's last three words.
template <class End>
INLINE void random_row(long count, std::uint32_t block, const std::uint32_t *rest, const std::uint32_t *key,
                       const End &end) {
  for (long i = 0; i < count; i += 64) {
    for (long j = 0; j < 32 && i + j < count; j += LANES) {
      const Words words = philox((std::uint32_t)((i / 2 + j) / 2) + block, rest, key);
      end(i + j, words.low);
      if (i + 32 + j < count) end(i + 32 + j, words.high);
    }
  }
}
