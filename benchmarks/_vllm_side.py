"""vLLM's side of fork.py: runs in vLLM's own environment, takes orders by lines of JSON and answers each with one.

First line: {model, prompts, memory_gb}; answer: {ready: version}. Then {new_tokens: n}: samples n tokens after every prompt from an
empty cache of prefixes and answers {cpu_s}. Needs nothing but vLLM, and writes nothing else to standard output.
"""

import json
import os
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints
    asked = json.loads(sys.stdin.readline())
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(asked["memory_gb"]))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    longest = max(map(len, asked["prompts"])) + asked["most_tokens"] + 1
    engine = vllm.LLM(
        model=asked["model"],
        dtype=asked["dtype"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        gpu_memory_utilization=0.3,
        max_model_len=max(longest, 1024),
        max_num_seqs=len(asked["prompts"]),
        enable_prefix_caching=True,
        distributed_executor_backend="uni",
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    print(json.dumps({"ready": vllm.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        count = json.loads(line)["new_tokens"]
        engine.reset_prefix_cache()
        params = [vllm.SamplingParams(temperature=1.0, max_tokens=count, ignore_eos=True, detokenize=False)] * len(prompts)
        start = time.process_time()
        found = engine.generate(prompts, params, use_tqdm=False)
        assert all(len(one.outputs[0].token_ids) == count for one in found)
        print(json.dumps({"cpu_s": time.process_time() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
