"""Where networks run, and in which numbers."""

import os

import torch

from lab.fast.encoder import BATCH
from lab.files import InputError, reason


def pick_device(name="auto"):
    """auto: the GPU when there is one; under torchrun each process has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and os.environ.get("LOCAL_RANK"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as e:  # each kind of device has its own errors
        raise InputError(
            f"--device {name}: not to be had here ({reason(e)}); try --device auto"
        ) from None
    if device.type not in BATCH:
        raise InputError(f"--device {name}: only {' and '.join(BATCH)} are supported")
    return device


def pick_precision(name, device):
    """auto: bfloat16 where the hardware multiplies it (features within 1 %), else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        has = any(able.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if has else "float32"
