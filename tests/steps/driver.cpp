// The runs of test_kernel_bits.py without Python: trains on made-up images and writes the weights, in PyTorch's layout,
// to the standard output. test_kernel_bits.py compiles it for other CPUs and runs it in an emulator:
// `pytest -m portable`.
//
//   driver A|B DROPOUT SPARSE THREADS [PATH]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../mnist_mlp/steps/kernel/steps.h"

using namespace steps;
extern "C" {
bool steps_use(const char *);
Net *steps_new(std::int64_t, const std::int64_t *);
void steps_free(Net *);
bool steps_train(Net *, Group *);
bool steps_evaluate(Net *, Evaluation *);
void steps_entries(const float *, std::int64_t, std::int64_t, float, std::int64_t *, Entry *);
}

// As `words` in test_kernel_bits.py: a word for each number, by murmur's finalizer.
static std::uint32_t word(std::uint32_t stream, std::uint32_t i) {
  std::uint32_t h = i + stream * 0x9e3779b9u;
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}

int main(int count, char **arguments) {
  if (count < 5) return 2;
  const bool b = arguments[1][0] == 'B', sparse = std::atoi(arguments[3]);
  const double p = std::atof(arguments[2]);
  if (count > 5 && !steps_use(arguments[5])) return 3;
  const std::vector<std::int64_t> widths =
      b ? std::vector<std::int64_t>{784, 256, 512, 128, 10} : std::vector<std::int64_t>{784, 64, 128, 64, 10};
  const std::int64_t depth = 4, in = 784, images = 500, batch = b ? 4 : 7, steps = b ? 100 : 200;

  std::vector<float> pixels(images * in);
  std::vector<std::int64_t> labels(images), order(batch * steps), starts(images + 1);
  for (std::uint32_t i = 0; i < pixels.size(); ++i) {
    const std::uint32_t w = word(1, i);
    pixels[i] = w % 5 ? -0.5f : (float)(w >> 8 & 255) / 256;
  }
  for (std::uint32_t i = 0; i < images; ++i) labels[i] = word(2, i) % 10;
  for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = word(3, i) % images;
  std::vector<Entry> entries;
  if (sparse) {
    steps_entries(pixels.data(), images, in, -0.5f, starts.data(), nullptr);
    entries.resize(starts[images]);
    steps_entries(pixels.data(), images, in, -0.5f, starts.data(), entries.data());
  }

  std::vector<std::vector<float>> memory;
  std::vector<float *> tensors;
  for (std::int64_t i = 0; i < depth; ++i) {
    for (int kind = 0; kind < 6; ++kind) {
      memory.emplace_back(kind % 2 ? widths[i + 1] : widths[i] * widths[i + 1]);
      tensors.push_back(memory.back().data());
      for (std::uint32_t k = 0; kind == 0 && k < memory.back().size(); ++k) {
        memory.back()[k] = ((float)(word(10 + (std::uint32_t)i, k) >> 8) / 16777216 - 0.5f) / 8;
      }
    }
  }

  const double dropout[] = {p, p, p, 0};
  Group g{};
  g.images = {pixels.data(), starts.data(), sparse ? entries.data() : nullptr, labels.data(), in, -0.5f};
  g.order = order.data(), g.tensors = tensors.data(), g.dropout = dropout;
  g.samples = batch * steps - 3, g.batch = batch, g.seed = 1234567890123456789u, g.epoch = 3;
  g.lr = 0.001, g.beta1 = 0.9, g.beta2 = 0.999, g.eps = 1e-8, g.optimizer = ADAM, g.threads = std::atoi(arguments[4]);
  Net *net = steps_new(depth, widths.data());
  if (!net || !steps_train(net, &g)) return 1;

  std::vector<float> logits(images * 10);
  std::vector<double> losses(images);
  std::int64_t units = 0;
  for (int i = 0; i + 1 < depth; ++i) units += widths[i + 1];
  std::vector<unsigned char> wrong(images), active(g.threads * units);
  Evaluation e{g.images,       tensors.data(), 0,           images, logits.data(),
               losses.data(), wrong.data(),   active.data(), g.threads};
  if (!steps_evaluate(net, &e)) return 1;
  steps_free(net);
  for (std::size_t i = 0; i < tensors.size(); i += 6) {
    std::fwrite(tensors[i], sizeof(float), memory[i].size(), stdout);
    std::fwrite(tensors[i + 1], sizeof(float), memory[i + 1].size(), stdout);
  }
  std::fwrite(&g.loss, sizeof g.loss, 1, stdout);
  std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
  std::fwrite(losses.data(), sizeof(double), losses.size(), stdout);
  return 0;
}
