"""Kernels: Triton for CUDA, C++ for CPU. Pure functions over tensors; each has a torch reference that tests compare with."""
