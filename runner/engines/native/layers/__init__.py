"""Layers that the model families share. Each knows tensors and a Batch, no requests and no files."""
