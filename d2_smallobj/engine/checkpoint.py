"""Save and load checkpoints: written atomically, read without running code."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch import nn

from d2_smallobj.config import has_penalty, task_a_iterations
from d2_smallobj.engine.distributed import from_main_process
from d2_smallobj.engine.setup import check_resumable, fingerprint, warn_of_other_model
from d2_smallobj.engine.weight_files import read_weights_file, reason_of, save_torch_file
from d2_smallobj.modeling.initial_weights import load_weights
from d2_smallobj.utils.files import atomic_write_text, read_text
from d2_smallobj.utils.messages import listed
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

_NETWORK_TIMEOUT = 20.0  # seconds without an answer
LAST = "last_checkpoint"
"""The file that names the checkpoint to resume."""


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, made safe and explicit.

    - Files are written completely or not at all, ``last_checkpoint`` included, so that after a
      kill or on a full disk the previous checkpoint stays valid.
    - Loading runs no code: ``weights_only=True``, and ``.pkl`` files may hold numpy arrays and
      plain containers only. A damaged file is one error that names it.
    - Weights load from every layout of :mod:`d2_smallobj.modeling.weight_layouts`.
    - A run resumes only its own config's checkpoints. If the last one is damaged, it resumes the
      one before and logs it.

    Args:
        model: takes and gives the weights.
        save_dir: folder of the checkpoints.
        cfg: the run's config: kept in checkpoints, compared with that of loaded ones.
        **checkpointables: see detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.cfg = cfg
        self._match_by_suffix = False
        self._complete = False
        self._resuming = False
        # (path, contents) of a file that was read to see whether it is damaged.
        self._read: tuple[str, dict[str, Any]] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables, config and ``kwargs`` to ``<save_dir>/<name>.pth``.

        Raises:
            OSError: if the file cannot be written; names it. Earlier checkpoints stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        if self.cfg is not None:
            data["config"] = fingerprint(self.cfg)
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        save_torch_file(path, data)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` continues from."""
        atomic_write_text(os.path.join(self.save_dir, LAST), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint; ValueError if its name cannot be read."""
        marker = os.path.join(self.save_dir, LAST)
        name = os.path.basename(read_text(marker, "the name of a checkpoint").strip())
        # A name with a folder in it would lead out of this one.
        if not name or not name.isprintable():
            raise ValueError(f"{marker}: expected the name of a checkpoint, got {name!r:.60}")
        return os.path.join(self.save_dir, name)

    def resume_or_load(
        self, path: str, *, resume: bool = True, complete: bool = False
    ) -> dict[str, Any]:
        """Continue the run in ``save_dir``, or load the weights in ``path`` alone (empty: none).

        The main process looks into the folder for all. A checkpointer without checkpointables (an
        evaluation) takes the weights of the last checkpoint or none.

        Args:
            path: weights to load when there is nothing to resume.
            resume: whether to look for a last checkpoint.
            complete: whether the weights must be those of the whole model.

        Returns:
            The file's contents besides model and checkpointables.

        Raises:
            ValueError: if no checkpoint can be resumed; names those that were tried.
        """
        last = from_main_process(lambda: self._find_resumable() if resume else None)
        if last is None:
            # Task B from the start is anchored to these weights: all of them must be there.
            if path and self.cfg is not None and task_a_iterations(self.cfg) == 0:
                complete = complete or has_penalty(self.cfg)
            return self.load(path, checkpointables=[], complete=complete)
        self._resuming = bool(self.checkpointables)
        try:
            return self.load(last, complete=True)
        finally:
            self._resuming, self._read = False, None

    def _find_resumable(self) -> str | None:
        """Find the newest checkpoint that can be read; None if the run has none."""
        if not self.has_checkpoint():
            return None
        failures: list[str] = []
        try:
            last = self.get_checkpoint_file()
        except (ValueError, OSError) as error:
            failures, last = [str(error)], ""
        # An evaluation must not report an earlier checkpoint's figures as the last one's.
        earlier = earlier_checkpoints(self.save_dir, last, self.cfg) if self.checkpointables else []
        for path in [last, *earlier] if last else earlier:
            try:
                self._read = path, read_weights_file(path)
            except (ValueError, OSError) as error:
                failures.append(str(error))
                continue
            if "trainer" in self.checkpointables:
                check_resumable(self._read[1], self.cfg, path)
            if failures:
                logger.warning(
                    f"{'; '.join(failures)}. The run resumes from the checkpoint before: {path}"
                )
            return path
        none = "; no checkpoint is left to resume from" if self.checkpointables else ""
        raise ValueError(listed(failures) + none)

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, complete: bool = False
    ) -> dict[str, Any]:
        """Load a file; see detectron2, also for ``?matching_heuristics=True`` at its end.

        Args:
            path: file or URL; empty: nothing is loaded.
            checkpointables: which of them to load; None: all.
            complete: whether every tensor of the model must be in the file. Without it, a head
                for other classes stays as initialised, with a warning.

        Returns:
            The file's contents besides model and checkpointables.

        Raises:
            FileNotFoundError: if the file does not exist.
            OSError: if a URL cannot be fetched; says what to do.
            ValueError: if it is corrupt, would run code, or does not fit the model; names it.
        """
        if complete and not path:
            raise ValueError(
                f"there are no weights to load: MODEL.WEIGHTS is empty, and {self.save_dir} holds "
                "no checkpoint to resume"
            )
        fetch_weights(path)
        url = urlparse(path)
        self._match_by_suffix = parse_qs(url.query).get("matching_heuristics") == ["True"]
        self._complete = complete
        try:
            return super().load(path, checkpointables)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            if not self._resuming:
                raise
            raise ValueError(
                f"{path} cannot be resumed: the state of training in it is malformed "
                f"({type(error).__name__}: {reason_of(error):.200})"
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        read, self._read = self._read, None
        loaded = read[1] if read and read[0] == filename else read_weights_file(filename)
        if self.cfg is not None and not self._resuming:
            warn_of_other_model(loaded, self.cfg, filename)
        return {**loaded, "source": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        load_weights(
            self.model,
            checkpoint.pop("model"),
            source=checkpoint.pop("source"),
            author=str(checkpoint.get("__author__", "")),
            by_suffix=self._match_by_suffix or bool(checkpoint.get("matching_heuristics")),
            complete=self._complete,
            cfg=None if self._resuming else self.cfg,
        )


def fetch_weights(path: str) -> None:
    """Check that a file of weights can be read; download it if ``path`` is a URL.

    Raises:
        FileNotFoundError: if a local file does not exist.
        OSError: if it cannot be read, or a URL cannot be fetched; says what to do.
    """
    local = urlparse(path)._replace(query="").geturl()
    if not path:
        return
    if "://" not in path:
        if not os.path.isfile(local):
            raise FileNotFoundError(
                f"checkpoint {local} does not exist (MODEL.WEIGHTS or --resume)"
            )
        try:
            open(local, "rb").close()
        except OSError as error:
            raise OSError(error.errno, f"could not read {local}: {error.strerror}") from error
        return
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)  # where a firewall drops packets, none comes back
    try:
        PathManager.get_local_path(local)
    except OSError as error:
        if "download it" in str(error):  # the embedded host says it already
            raise
        raise OSError(
            f"{local}: cannot be fetched ({error}). Without a network, download it elsewhere and "
            "give the local file instead (MODEL.WEIGHTS)"
        ) from error
    finally:
        socket.setdefaulttimeout(waits)


def earlier_checkpoints(save_dir: str, last: str, cfg: CfgNode | None = None) -> list[str]:
    """List the checkpoints of a folder that were written before ``last``, newest first.

    Names tell the iteration, so that files which an older, longer run left are not this run's; if
    that of ``last`` does not, all count. Only ``cfg`` tells that of ``model_task_a.pth``.
    """
    named = {}
    if cfg is not None:
        named = {"model_task_a.pth": task_a_iterations(cfg) - 1}
        named["model_final.pth"] = cfg.SOLVER.MAX_ITER - 1

    def iteration_of(name: str) -> int | None:
        numbered = re.fullmatch(r"model_(\d{7,})\.pth", name)
        return int(numbered[1]) if numbered else named.get(name)

    before = iteration_of(os.path.basename(last))
    limit = math.inf if before is None else before
    found = [(iteration_of(name), name) for name in os.listdir(save_dir)]
    earlier = [pair for pair in found if pair[0] is not None and pair[0] < limit]
    return [os.path.join(save_dir, name) for _, name in sorted(earlier, reverse=True)]
