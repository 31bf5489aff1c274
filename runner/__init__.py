"""llmrun: any model on any engine behind any frontend."""

__version__ = "0.1.0"
