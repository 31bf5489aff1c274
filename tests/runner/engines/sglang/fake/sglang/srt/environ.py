"""SGLang's variables."""


class envs:
    SGLANG_ENABLE_DELAY_SAMPLE = None
