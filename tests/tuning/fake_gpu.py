"""A GPU that is not there, as far as a tuning asks about it."""

import torch

GPU = torch.device("cuda", 0)
KEY = {
    "type": "cuda", "device": "Test GPU", "capability": "9.0", "driver": "1", "torch": "2", "growtas": "0",
    "triton": "3", "kernels": "abc",
}  # fmt: skip
