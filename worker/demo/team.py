"""Training on several GPUs: a process each, which agree on every step's gradients.

torch's launcher starts the processes and tells each of them who it is:

    python -m torch.distributed.run --nproc-per-node 2 -m -- worker.demo.train …

Started without it, a process is a team of one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Team:
    """The processes of one run. Joining waits until all are there."""

    def __init__(self, device: str) -> None:
        """Join. `device` is "cuda" or "cpu"; on a GPU each member takes its own."""
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = device
        if device == "cuda":
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(self.device)
        if self.size > 1:
            distributed.init_process_group("nccl" if device == "cuda" else "gloo")

    @property
    def leads(self) -> bool:
        """True for the one that prints and writes."""
        return self.rank == 0

    def average(self, parameters: Sequence[Tensor], number: float) -> float:
        """Replace all members' gradients by their mean, and return the mean of their numbers.

        Every member gets the same values to the last bit, so equal weights stay equal.

        Args:
            parameters: float32, in the same order everywhere; each has a gradient.
            number: of this member, kept to float32.
        """
        if self.size == 1:
            return number
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(one.flatten() for one in gradients), gradients[0].new_tensor([number])])
        distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for one in gradients:
            one.copy_(flat[start : start + one.numel()].view_as(one))
            start += one.numel()
        return float(flat[-1])

    def wait(self) -> None:
        """Wait until every member has come here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """End the team; the leader may go on alone."""
        if self.size > 1:
            distributed.destroy_process_group()
