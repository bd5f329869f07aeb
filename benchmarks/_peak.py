"""What this machine can do at best: the speeds that a phase is held against."""

import time

import torch

_SIZES = {"cpu": 2048, "cuda": 8192}  # what fills the machine: a GPU is idle half of a smaller product


def matmul_peak(dtype: torch.dtype, device: str = "cpu", seconds: float = 1.0, size: int | None = None) -> float:
    """GFLOP/s of a square product in `dtype` with the threads of this process: the best of those that fit into `seconds`. `size`:
    its rows and columns (None: enough to fill the machine, which takes long where a CPU has no instructions for `dtype`)."""
    size = size or _SIZES[torch.device(device).type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):  # the first calls prepare
        left @ right
    _wait(device)
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        left @ right
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def copy_peak(device: str = "cpu", seconds: float = 0.5) -> float:
    """GB/s read and written by a copy that no cache holds (256 MB)."""
    source = torch.empty(64 << 20, dtype=torch.float32, device=device).zero_()
    target = torch.empty_like(source)
    target.copy_(source)
    _wait(device)
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
