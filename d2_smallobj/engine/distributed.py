"""Training with several processes, so that they learn what one process would.

With N processes ``SOLVER.IMS_PER_BATCH`` is still the whole batch, the rates are not scaled (unless
``SOLVER.REFERENCE_WORLD_SIZE`` says so), each process takes every N-th image of the one stream, and
the loss is divided by what the batch of all processes weighs (``SMALLOBJ.GLOBAL_DIVISOR``). With
frozen or group norms weights, Fisher information and penalty are then those of one process up to
rounding; BatchNorm takes its statistics per process (SyncBN: over all).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm


def check_batch_size(cfg: CfgNode, processes: int) -> None:
    """The batch is that of all processes, and each takes its share.

    Raises:
        ValueError: if the batch does not divide among the processes; names the nearest that do.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch >= 1 and batch % processes == 0:
        return
    near = sorted({max(batch // processes, 1) * processes, (batch // processes + 1) * processes})
    hint = "" if batch < 1 else f"; take {' or '.join(map(str, near))}, or other processes"
    raise ValueError(
        f"SOLVER.IMS_PER_BATCH must be a positive multiple of the number of processes "
        f"({processes}), got {batch}{hint}"
    )


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model in DDP when there are several processes.

    Args:
        model: on its device.

    Returns:
        ``model`` itself for one process.
    """
    if comm.get_world_size() == 1:
        return model
    # Gradients lie in the buckets that are sent: one copy of them less.
    arguments: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    if next(model.parameters()).device.type == "cpu":
        arguments["device_ids"] = None
    return create_ddp_model(model, **arguments)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place; they must call it together."""
    dist.all_reduce(tensor)
    return tensor


def synchronize_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers (BatchNorm statistics differ between them)."""
    if comm.get_world_size() == 1:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
