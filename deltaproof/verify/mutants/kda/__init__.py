"""Broken backends of Kimi delta attention, and the unbroken one that they are made from."""

from deltaproof.verify.mutants.kda.model import KdaModel

__all__ = ["KdaModel"]
