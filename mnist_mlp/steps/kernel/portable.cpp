// The code path for any CPU; on 64-bit ARM, with NEON's fused multiply-add.
#include "steps.h"

namespace steps {
namespace {
#include "vector.h"
#include "product.h"
#include "random.h"
#include "network.h"
}  // namespace
const Path portable = {"portable", train, evaluate, random, peak};
}  // namespace steps
