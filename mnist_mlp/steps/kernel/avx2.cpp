// The code path for x86-64 with AVX2 and FMA. Nothing of the standard library may be used in it: the linker
// could choose this file's copy of a template for all of them.
#include "steps.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define STEPS_AVX2

namespace steps {
namespace {
#include "vector.h"
#include "product.h"
#include "random.h"
#include "network.h"
}  // namespace
}  // namespace steps

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
const steps::Path steps::avx2 = {"avx2", train, evaluate, random, peak};
#endif
