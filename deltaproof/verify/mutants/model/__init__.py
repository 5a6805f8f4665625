"""A right backend written the way kernels are, so that a mutant is a line or two of a kernel gone wrong."""

from deltaproof.verify.mutants.model.backend import ModelBackend

__all__ = ["ModelBackend"]
