"""One process or many: the same loop under ``python`` and under ``torchrun``.

``torchrun --nproc-per-node 4 train.py`` sets RANK, LOCAL_RANK and WORLD_SIZE; everything else here follows from
them. gloo carries the messages between CPUs, nccl between GPUs.
"""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined] # public, but torch's stubs do not export it
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from edgevision.errors import EdgeVisionError, TrainingError, UsageError


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
        device: what this process computes on.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and draws the progress bar."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the processes; starts from rank 0's weights."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, values: Sequence[float] | Tensor) -> list[float]:
        """Element-wise sum over all processes."""
        total = torch.as_tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            total = total.clone()
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Average floating buffers (batch normalisation's running statistics), which DDP lets drift apart."""
        if self.world_size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.world_size)

    def on_main(self, function: Callable[[], bytes]) -> bytes:
        """What ``function`` returns on rank 0, everywhere: other machines need not see the run folder.

        Raises:
            EdgeVisionError: what ``function`` raised on rank 0; `TrainingError` with its message elsewhere.
        """
        if self.world_size == 1:
            return function()
        failure: EdgeVisionError | None = None
        payload = b""
        if self.main:
            try:
                payload = function()
            except EdgeVisionError as error:
                failure, payload = error, str(error).encode()
        payload, failed = self._broadcast(payload, failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise TrainingError(f"the main process stopped: {payload.decode()}")
        return payload

    def _broadcast(self, payload: bytes, failed: bool) -> tuple[bytes, bool]:
        head = torch.tensor([len(payload), int(failed)], dtype=torch.int64, device=self.device)
        dist.broadcast(head, src=0)
        size = int(head[0])
        if self.main and size:
            body = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(self.device)
        else:
            body = torch.empty(size, dtype=torch.uint8, device=self.device)
        if size:
            dist.broadcast(body, src=0)
        return body.cpu().numpy().tobytes(), bool(head[1])


@contextmanager
def processes(device: str | torch.device | None = None) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or stand alone.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; by default the process's own GPU where there is one.

    Raises:
        UsageError: a device that is not there.
        TrainingError: the other processes cannot be reached.
    """
    if dist.is_initialized():  # the caller's own group stays the caller's
        yield Processes(dist.get_rank(), dist.get_world_size(), choose_device(device))
        return
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if world_size == 1 or "RANK" not in os.environ:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # its functions take the default group of the moment when they are first imported (by the first wrapped network) as
    # a default argument, which would keep the group and its threads until the interpreter is gone
    importlib.import_module("torch.distributed.nn.functional")

    try:
        store, rank = _meeting_place()
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        # a name for each group: addresses that an earlier group of these processes left in the store are dead
        groups = PrefixStore(f"edgevision/{next(_group_numbers)}", store)
        dist.init_process_group(backend, store=groups, rank=rank, world_size=world_size)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"cannot join the {world_size} processes of this run (torchrun): {error}") from error
    try:
        yield Processes(dist.get_rank(), world_size, chosen)
    finally:
        dist.destroy_process_group()
        # the group's threads end with its last reference; one that is left when Python ends takes the process down
        gc.collect()


_group_numbers = itertools.count()


@functools.cache
def _meeting_place() -> tuple[Any, int]:
    """The store in which the processes find each other, and this one's rank; opened once, shared by all groups."""
    store, rank, _ = next(rendezvous("env://"))
    return store, int(rank)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device, or this process's GPU, or the CPU.

    Raises:
        UsageError: the device does not exist on this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}: choose cpu, cuda or cuda:N") from error
    if chosen.type == "cpu":
        return chosen
    count = torch.cuda.device_count() if chosen.type == "cuda" else 0
    index = chosen.index if chosen.index is not None else local
    if index >= count:
        raise UsageError(f"device {device!s} asks for GPU {index} of {chosen.type}, but this machine has {count}")
    return torch.device(chosen.type, index)
