"""What a backend is and declares. Choosing one is in ``deltaproof.backends.registry``, which needs torch."""

from deltaproof.backends.protocol import Backend
from deltaproof.contracts.conventions import Conventions, GateSpace, Padding, StateLayout

__all__ = ["Backend", "Conventions", "GateSpace", "Padding", "StateLayout"]
