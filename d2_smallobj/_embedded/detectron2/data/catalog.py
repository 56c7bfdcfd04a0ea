"""Global catalogs: data set names to loading functions, and to metadata."""

from __future__ import annotations

import types
from collections import UserDict
from collections.abc import Callable
from typing import Any


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """Return the names."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget a data set."""
        del self[name]


class _DatasetCatalog(_Catalog):
    """Maps a data set's name to the function that returns its samples."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Register a function without arguments under a new name."""
        if name in self:
            # Same type as detectron2's, so that one except clause serves both hosts.
            raise AssertionError(f"the data set {name!r} is already registered")
        self[name] = func

    def get(self, name: str) -> Any:
        """Call the function registered under ``name``; ``KeyError`` names the known ones."""
        if name not in self:
            raise KeyError(f"the data set {name!r} is not registered; there are {sorted(self)}")
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Attributes of one data set; an attribute can be set again only to an equal value."""

    def __setattr__(self, key: str, value: Any) -> None:
        before = getattr(self, key, value)
        if before != value:
            raise AssertionError(
                f"{key!r} in the metadata of {self.name!r} is {before!r} and cannot become "
                f"another value, got {value!r}"
            )
        super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes; return self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or ``default``."""
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Maps a data set's name to its one :class:`Metadata`, created on first use."""

    def get(self, name: str) -> Metadata:
        """Return the metadata of a data set."""
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
