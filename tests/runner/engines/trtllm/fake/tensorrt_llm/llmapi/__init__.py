from tensorrt_llm.signatures import record

KvCacheConfig = record("KvCacheConfig")
GuidedDecodingParams = record("GuidedDecodingParams")
