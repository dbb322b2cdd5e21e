"""Random generators by key: the same in every run and process, whatever was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def torch_generator(seed: int, key: int | str) -> torch.Generator:
    """torch's generator for one batch, image or step of a seed."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def numpy_generator(*key: int) -> np.random.Generator:
    """numpy's generator for a key of whole numbers, such as seed, epoch and image."""
    return np.random.default_rng([number % 2**64 for number in key])
