"""The Engine: a queue, slots, and a model that computes logits from the last two tokens."""

import asyncio
import multiprocessing
import signal
import time
from types import SimpleNamespace

import torch

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from sglang.srt.server_args import ServerArgs

VOCAB_SIZE = 1024
EOS = 2
STEP_S = 0.002


def logits_of(ids):
    """[VOCAB_SIZE]; the same for the same last two tokens. End tokens are unlikely."""
    generator = torch.Generator().manual_seed(ids[-1] * VOCAB_SIZE + ids[-2] if len(ids) > 1 else ids[-1])
    logits = torch.randn(VOCAB_SIZE, generator=generator)
    logits[:3] -= 9.0
    return logits


def work(name, crash):
    """What a process of SGLang does here: live, or not."""
    if crash == name:
        raise RuntimeError("the scheduler hit an exception")
    time.sleep(600)


class Request:
    def __init__(self, ids, params, processor):
        self.origin_input_ids, self.output_ids, self.to_finish = ids, [], None
        self.params = params
        self.processor = CustomLogitProcessor.from_str(processor) if processor else None
        self.custom = {**params["custom_params"], "__req__": self} if processor else None
        self.is_aborted = False

    def step(self):
        """One token more; the finish reason, or None."""
        logits = logits_of([*self.origin_input_ids, *self.output_ids])
        for token, bias in (self.params.get("logit_bias") or {}).items():
            logits[int(token)] += bias
        if self.processor is not None:
            logits = self.processor(logits.unsqueeze(0), [self.custom])[0]
        if self.params["temperature"] > 0:
            token = int(torch.multinomial(torch.softmax(logits / self.params["temperature"], -1), 1))
        else:
            token = int(logits.argmax())
        self.output_ids.append(token)
        self.logprob = float(torch.log_softmax(logits, -1)[token])
        if self.to_finish is not None:
            return self.to_finish.to_json()
        if not self.params["ignore_eos"] and token in {EOS, *self.params.get("stop_token_ids", ())}:
            return {"type": "stop", "matched": token}
        if len(self.output_ids) >= self.params["max_new_tokens"]:
            return {"type": "length", "length": self.params["max_new_tokens"]}
        return None


class TokenizerManager:
    def __init__(self, args):
        self.model_config = SimpleNamespace(vocab_size=VOCAB_SIZE, hf_eos_token_id={EOS})
        self.is_generation = True
        self.requests = {}
        self.context_len = args.context_length or 4096
        self.slots = asyncio.Semaphore(args.max_running_requests or 16)

    def auto_create_handle_loop(self):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, lambda: None)

    def abort_request(self, rid="", abort_all=False):
        for name, request in self.requests.items():
            if abort_all or name.startswith(rid):
                request.is_aborted = True

    async def generate_request(self, rid, request, wants_logprobs, top):
        if len(request.origin_input_ids) >= self.context_len:
            raise ValueError("The input is longer than the model's context length")
        self.requests[rid] = request
        logprobs, tops, finish = [], [], None
        try:
            async with self.slots:
                while finish is None and not request.is_aborted:
                    await asyncio.sleep(STEP_S)
                    finish = request.step()
                    meta = {"id": rid, "finish_reason": finish, "cached_tokens": 0}
                    if wants_logprobs:
                        logprobs.append((request.logprob, request.output_ids[-1], None))
                        tops.append([logprobs[-1]] * top)
                        meta |= {"output_token_logprobs": logprobs, "output_top_logprobs": tops}
                    yield {"output_ids": list(request.output_ids), "meta_info": meta}
        finally:
            self.requests.pop(rid, None)


class Engine:
    def __init__(self, **kwargs):
        args = self.server_args = ServerArgs(**kwargs)
        assert args.skip_tokenizer_init
        signal.signal(signal.SIGQUIT, args.custom_sigquit_handler)
        spawn = multiprocessing.get_context("spawn")
        names = ("sglang::scheduler", "sglang::detokenizer")
        self.processes = [spawn.Process(target=work, args=(name, args.crash)) for name in names]
        for process in self.processes:
            process.start()
        self.tokenizer_manager = TokenizerManager(args)
        info = {"max_req_input_len": self.tokenizer_manager.context_len - 6, "max_total_num_tokens": 16384}
        self._scheduler_init_result = SimpleNamespace(scheduler_infos=[info])

    async def async_generate(
        self,
        prompt=None,
        sampling_params=None,
        input_ids=None,
        image_data=None,
        audio_data=None,
        video_data=None,
        mm_hashes=None,
        mm_content_hashes=None,
        return_logprob=False,
        logprob_start_len=None,
        top_logprobs_num=None,
        token_ids_logprob=None,
        lora_path=None,
        custom_logit_processor=None,
        require_reasoning=False,
        return_hidden_states=False,
        return_routed_experts=False,
        routed_experts_start_len=0,
        stream=False,
        bootstrap_host=None,
        bootstrap_port=None,
        bootstrap_room=None,
        routed_dp_rank=None,
        disagg_prefill_dp_rank=None,
        kv_hints=None,
        data_parallel_rank=None,
        external_trace_header=None,
        rid=None,
        session_params=None,
        priority=None,
        session_id=None,
        *,
        cache_salt=None,
    ):
        assert stream and prompt is None
        request = Request(input_ids, sampling_params, custom_logit_processor)
        return self.tokenizer_manager.generate_request(rid, request, return_logprob, top_logprobs_num or 0)
