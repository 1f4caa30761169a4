"""Weights that were not written by `mnist-train`: the package's own (`README.md` beside this), and those of others."""
