"""Stand-in for detectron2's public interface, as far as d2_smallobj uses it (see ../README.md)."""

from d2_smallobj import _host

__version__ = "0.6+embedded"

_host.announce_host()
