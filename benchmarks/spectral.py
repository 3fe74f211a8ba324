"""SSR by a small eigendecomposition against SSR by a singular value decomposition.

``python -m benchmarks spectral`` prints milliseconds (median of 20) and their ratio, for
the default maps at the widths of released models, two guidance rows each.
"""

import statistics
import time

import torch

from diversevar_core.methods.ssr_sar import reweight

RATE = -1.0


def by_svd(x: torch.Tensor) -> torch.Tensor:
    """SSR by its formula, in the input's precision."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * (torch.exp(RATE * s / s[..., :1]) * s).unsqueeze(-2)) @ vh


def milliseconds(call, x: torch.Tensor) -> float:
    """Median time of a call."""
    times = []
    for _ in range(22):
        start = time.perf_counter()
        call(x).cpu()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def main(device: str) -> None:
    """Print the table."""
    print("tokens x width      svd      eigh    svd / eigh")
    for side in (4, 6, 8):
        for width in (1024, 2048, 3584):
            x = torch.randn(2, side * side, width, device=device)
            svd, eigh = milliseconds(by_svd, x), milliseconds(lambda x: reweight(x, RATE), x)
            print(f"{side**2:6} x {width:5} {svd:8.2f} {eigh:9.2f} {svd / eigh:11.1f}")
