"""Several processes, on one machine or on many, train one network: ``torchrun --nproc-per-node 2 -m training.train …``.

Each learns alone from its share of every epoch. Once in a while all meet and take the mean of their weights, in
proportion to the steps that each has made since the last time (local SGD, https://arxiv.org/abs/1805.09767). So slow
networks and unequal machines do no harm: who is slow makes fewer steps.
"""

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

PATIENCE = timedelta(days=1)  # of those who wait: decoding and scoring take as long as they take


class Workers:
    """The processes that torchrun or Ray started, or this one alone. Every call is made by all of them together."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))  # among those of this machine
        self._joined = self.size > 1 and not torch.distributed.is_initialized()  # if not, Ray did, and will part
        if self._joined:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)

    def part(self) -> None:
        """End their connections, once all have come: gloo's threads may abort a process that ends with them open."""
        if self._joined:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def device(self, gpus: int) -> torch.device:
        """Where this one computes: the processes of a machine share its GPUs in turn; the CPU if it has none."""
        return torch.device("cuda", self.local_rank % gpus) if gpus else torch.device("cpu")

    def sum(self, *values: float) -> list[float]:
        """The sums of everyone's values."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            torch.distributed.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def merge(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Put the weighted mean of everyone's numbers into the state; what is no fraction comes from the first."""
        if self.size == 1:
            return
        (total,) = self.sum(weight)
        values = [value for value in state.values() if value.is_floating_point()]
        flat = torch.cat([value.flatten() for value in values]) * (weight / total)
        torch.distributed.all_reduce(flat)
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))
        for value in state.values():
            if not value.is_floating_point():
                torch.distributed.broadcast(value, src=0)
