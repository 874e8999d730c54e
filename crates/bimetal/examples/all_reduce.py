"""PyTorch's side of `all_reduce`: 256 MiB over the ranks of a run; start one process a GPU with torchrun's variables set."""

import os

import torch
import torch.distributed as dist

rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")
size = dist.get_world_size()
x = torch.full((64 << 20,), float(rank + 1), device="cuda")
dist.all_reduce(x)
best = float("inf")
for _ in range(10):
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        dist.all_reduce(x)
    end.record()
    torch.cuda.synchronize()
    best = min(best, start.elapsed_time(end) / 10 * 1e3)
moved = 2 * (size - 1) / size * (64 << 20) * 4
print(f"torch rank {rank}: all-reduce of 256 MiB {best:8.1f} us, {moved / best / 1e3:6.1f} GB/s")
dist.destroy_process_group()
