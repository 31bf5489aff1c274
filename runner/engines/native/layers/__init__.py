"""Layers that the model families share. Each is an nn.Module that knows tensors and a Batch, no requests and no files."""
