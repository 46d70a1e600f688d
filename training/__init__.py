"""Tools that are run with ``python -m``: to train a model, to score it, to publish it."""

import os

# Before anything imports TensorFlow. What goes wrong is an exception; what it prints as errors (3: only what ends the
# process is left) is that there is no GPU, and which of its kernels do without oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
