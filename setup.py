"""The one part of the package that is compiled: the kernel of native steps. All else stands in pyproject.toml."""

from setuptools import Extension, setup

KERNEL = "mnist_mlp/steps/kernel"
PARTS = ("steps", "portable", "avx2", "avx512")
HEADERS = ("steps", "vector", "product", "random", "network")
# No -march: each code path names the instructions that it uses, and the best that the CPU has is chosen at run time.
# What rounds is stated in the code: the compiler may neither fuse nor reorder, whatever CFLAGS say.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-pthread",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]

setup(
    ext_modules=[
        Extension(
            "mnist_mlp.steps._kernel",
            sources=[f"{KERNEL}/{name}.cpp" for name in PARTS],
            depends=[f"{KERNEL}/{name}.h" for name in HEADERS],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            py_limited_api=True,  # it is loaded with ctypes, and does not know Python
            optional=True,  # without a compiler the package is installed all the same, and trains with eager steps
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
