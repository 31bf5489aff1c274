"""Kernels: Triton for CUDA, C++ for CPU. Pure functions over tensors; tests compare each with a torch reference."""
