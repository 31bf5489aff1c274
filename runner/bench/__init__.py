"""`llmrun bench`: measure any engine in this process, or any OpenAI server by its URL, with one and the same load."""
