from tensorrt_llm.llm import EngineLLM as LLM

__all__ = ["LLM"]
