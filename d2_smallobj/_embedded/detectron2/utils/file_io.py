"""The project's path manager: local files, ``http(s)://`` and ``detectron2://``."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

PathManager = _PathManager()


class _ModelZooHandler(PathHandler):
    """Fetches ``detectron2://<name>`` from detectron2's public download server, with a cache."""

    PREFIX = "detectron2://"
    URL = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        url = self.URL + path[len(self.PREFIX) :]
        try:
            return PathManager.get_local_path(url, force=force, **kwargs)
        except OSError as error:
            raise OSError(
                f"{path}: cannot fetch {url} ({error}). Without a network, download it elsewhere "
                "and give the local file instead (MODEL.WEIGHTS)."
            ) from error


for _handler in (HTTPURLHandler(), _ModelZooHandler()):
    PathManager.register_handler(_handler)
