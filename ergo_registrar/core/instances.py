"""Where an application is, as of one moment."""

from collections.abc import Mapping
from typing import final

from ergo_registrar.routes import ApplicationRoute


@final
class Instances:
    """The instances of one application: `routes` by node, suspects and the own one included.

    It never changes: as soon as anything about the application does, there is another object. So what was made of it
    need not be made again while it is the same one.
    """

    __slots__ = ("routes", "suspects")

    def __init__(self, routes: Mapping[str, ApplicationRoute], suspects: frozenset[str] = frozenset()) -> None:
        self.routes: Mapping[str, ApplicationRoute] = routes
        self.suspects: frozenset[str] = suspects  # the nodes on which it is only believed to be


NOWHERE = Instances({})
"""The instances of an application that nobody has."""
