"""What a model is: its card, tokenizer, chat template and where its files are.

A leaf package: it knows nothing of engines, requests or frontends, and imports nothing from `runner`.
"""
