"""A stand-in for NCCL and CUDA on a CPU, under vLLM's own NCCL weight transfer: everything of vLLM's but the wire.

Imported in vLLM's workers as `worker_extension_cls`, and in the learner by a test.
"""

import itertools
from types import SimpleNamespace

import torch
import vllm.distributed.device_communicators.pynccl as pynccl

BREAK_AFTER = "break after"  # a tensor of this name ends the transfer in the worker that receives it


class OverStore:
    """`PyNcclCommunicator` over the store of vLLM's process group."""

    def __init__(self, group, device=None):
        self.group = group

    def broadcast(self, tensor, src, stream=None):
        sent = self.group.broadcast_obj(tensor if self.group.rank == src else None, src)
        tensor.copy_(sent)

    def destroy(self):
        self.group = None


class Extension:
    """What vLLM adds to a worker: nothing."""


def install():
    stream = SimpleNamespace(synchronize=lambda: None)
    pynccl.PyNcclCommunicator = OverStore
    torch.cuda.current_stream = lambda device=None: stream
    torch.accelerator.current_device_index = itertools.repeat(0).__next__
    torch.accelerator.synchronize = lambda device=None: None


install()
