"""PyTorch's side of `cuda_runtime`: the same products and the launch of a one-element addition."""

import time

import torch

torch.backends.cuda.matmul.allow_tf32 = False
SHAPES = [
    (1, 8192, 8192, 8192),
    (1, 8192, 14336, 4096),
    (1, 1, 14336, 4096),
    (1, 8, 14336, 4096),
    (1, 128, 4096, 4096),
    (64, 128, 128, 128),
    (1, 2048, 2048, 2048),
]


def best_us(work, repeats):
    for _ in range(3):
        work()
    best = float("inf")
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / repeats * 1e3)
    return best


for dtype in [torch.bfloat16, torch.float32]:
    for batch, m, n, k in SHAPES:
        lead = (batch,) if batch > 1 else ()
        a = torch.randn(*lead, m, k, device="cuda", dtype=dtype)
        b = torch.randn(*lead, k, n, device="cuda", dtype=dtype)
        out = torch.empty(*lead, m, n, device="cuda", dtype=dtype)
        us = best_us(lambda: torch.matmul(a, b, out=out), 20 if m > 4096 else 200)
        rate = 2 * batch * m * n * k / us / 1e6
        print(f"torch {dtype} {batch}x{m}x{n}x{k} {us:10.2f} us {rate:8.1f} TFLOP/s", flush=True)

x, y = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda")
for _ in range(3):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20_000):
        torch.add(x, x, out=y)
    torch.cuda.synchronize()
    print(f"torch add out= {(time.perf_counter() - start) / 20_000 * 1e6:.2f} us")
