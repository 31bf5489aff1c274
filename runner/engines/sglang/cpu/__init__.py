"""What `llmrun engines install sglang --cpu` adds to SGLang's environment: copies of these files, run there only.

SGLang's CPU kernels are in no package of the index; with these files it runs on plain PyTorch.
"""
