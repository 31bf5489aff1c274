"""Kernels: torch (the reference, any device), C++ for CPU, Triton for CUDA. Tests compare each with the reference."""
