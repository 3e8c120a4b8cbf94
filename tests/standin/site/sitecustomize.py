"""Puts the stand-in's kernels in their place, before anything runs."""

import os

import torch

torch.ops.load_library(os.environ["MANUAL_MLP_STANDIN"])
# Its generators, streams and allocator come to be.
torch.cuda.init()
