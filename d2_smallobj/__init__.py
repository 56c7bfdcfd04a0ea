"""d2_smallobj: IA-mIoU, size-balanced cross-entropy and their tools for detectron2.

Importing this package only installs the import hook for the host (:mod:`d2_smallobj._host`).
Public names, e.g. ``d2_smallobj.add_small_objects``, are resolved on first use from
:mod:`d2_smallobj.plugin`, whose import registers the architectures;
``d2_smallobj.metrics`` and ``d2_smallobj.annotations`` never need torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from d2_smallobj._host import Host, announce_host, host, install

__version__ = "0.1.0"
__all__ = ["Host", "__version__", "announce_host", "host"]

install()


def __getattr__(name: str) -> Any:
    """Resolve a submodule or a public name of :mod:`d2_smallobj.plugin` on first use (PEP 562)."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    host()  # says clearly what is wrong with the host before the plugin trips over it
    from d2_smallobj.utils.installation import explained_imports

    with explained_imports():
        plugin = importlib.import_module(f"{__name__}.plugin")
    if name not in plugin.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(plugin, name)
    globals()[name] = value
    return value
