#!/usr/bin/env python3
"""The rows of context_bench --grid on Hugging Face transformers: seconds of a prompt and a greedy generation, end to end.

    transformers_grid.py --grid 1:32:512,2:512:32 [--static] [--repeats 1] [--max-time 500]

The model has Llama-1/2 7B's shape unless told otherwise, random weights in fp16 that are made on the device (nothing is
fetched), and PyTorch's scaled dot-product attention. Each row is one model.generate of random token ids, after a warm-up of the
row's prompt and 8 tokens. The weights are fp16, where context_bench is usually given Q4_0: at batch 1 that alone is most of the
difference in decode. --static gives generate a cache of the row's full length, for which it compiles the decode step into a CUDA
graph (during the warm-up); otherwise it runs with its defaults, a cache that grows and kernels launched from Python.
--max-time ends a row that takes longer, which is then reported as what it did in that time.
"""
import argparse
import gc
import statistics
import time

import torch
import transformers


def grid(text):
    rows = []
    for part in text.split(","):
        numbers = [int(number) for number in part.split(":")]
        if len(numbers) != 3 or min(numbers) < 1:
            raise argparse.ArgumentTypeError(f"rows are batch:prompt:generated, not {part}")
        rows.append(tuple(numbers))
    return rows


def arguments():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--grid", type=grid, required=True, metavar="B:P:G,...")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--max-time", type=float, metavar="SECONDS")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--embedding", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--feed-forward", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    return parser.parse_args()


def make_model(a):
    config = transformers.LlamaConfig(
        num_hidden_layers=a.layers,
        hidden_size=a.embedding,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        intermediate_size=a.feed_forward,
        vocab_size=a.vocabulary,
        max_position_embeddings=max(prompt + generated for _, prompt, generated in a.grid) + 8,
        pad_token_id=0,
    )
    with torch.device(a.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16, attn_implementation="sdpa")
    weights = next(model.parameters())
    if weights.dtype != torch.float16 or weights.device.type != torch.device(a.device).type:
        raise SystemExit(f"the weights are {weights.dtype} on {weights.device}")
    return model.eval()


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class Stop(transformers.StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, ids, scores, **kwargs):
        return torch.full((ids.shape[0],), ids.shape[1] >= self.length, device=ids.device)


def generate(model, prompt, tokens, cache, **limits):
    if cache is not None:
        cache.reset()
        limits["past_key_values"] = cache
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        use_cache=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        **limits,
    )


def run(model, a, batch, prompt_length, tokens):
    """Seconds of each repeat, tokens of each sequence that came out of the last, peak of device memory in MiB."""
    on_gpu = torch.device(a.device).type == "cuda"
    prompt = torch.randint(3, a.vocabulary, (batch, prompt_length), device=a.device)
    cache = transformers.StaticCache(config=model.config, max_cache_len=prompt_length + tokens) if a.static else None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    generate(model, prompt, tokens, cache, stopping_criteria=[Stop(prompt_length + 8)])
    seconds = []
    for _ in range(a.repeats):
        synchronize(a.device)
        begin = time.perf_counter()
        out = generate(model, prompt, tokens, cache, **({"max_time": a.max_time} if a.max_time else {}))
        synchronize(a.device)
        seconds.append(time.perf_counter() - begin)
        came = out.shape[1] - prompt_length
        if came < tokens:
            break
    return seconds, came, torch.cuda.max_memory_reserved() / 2**20 if on_gpu else 0


def main():
    a = arguments()
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    model = make_model(a)
    where = torch.cuda.get_device_name() if torch.device(a.device).type == "cuda" else a.device
    parameters = sum(p.numel() for p in model.parameters())
    cache = "static cache, compiled" if a.static else "dynamic cache"
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {where}, {parameters / 1e9:.2f} G parameters, fp16, sdpa, {cache}\n")
    print("| batch [prompt, generated] | seconds | range | t/s | device at the peak, MiB |\n|---|---|---|---|---|", flush=True)
    for batch, prompt, tokens in a.grid:
        test = f"{batch} [{prompt}, {tokens}]"
        came = None
        try:
            seconds, came, peak = run(model, a, batch, prompt, tokens)
        except torch.OutOfMemoryError:
            pass
        # outside of the except clause: the exception holds on to the frames with the cache
        torch.compiler.reset()
        gc.collect()
        if torch.device(a.device).type == "cuda":
            torch.cuda.empty_cache()
        if came is None:
            print(f"| {test} | OOM |", flush=True)
        elif came < tokens:
            print(f"| {test} | over {seconds[-1]:.0f}: {came} of {tokens} tokens | | {batch * came / seconds[-1]:.1f} | {peak:.0f} |", flush=True)
        else:
            s = statistics.median(seconds)
            print(f"| {test} | {s:.3f} | {min(seconds):.3f} - {max(seconds):.3f} | {batch * tokens / s:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
