"""MNIST as it was published, and where to find the files of each family: files.py."""
