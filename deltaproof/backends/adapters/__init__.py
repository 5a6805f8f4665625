"""Adapters to installed peers: backends taken only when they are asked for by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

ADAPTERS: Mapping[str, Mapping[str, str]] = {
    "gated_delta_rule": {
        "fla": "deltaproof.backends.adapters.fla:Fla",
        "fla:default": "deltaproof.backends.adapters.fla:FlaDefault",
        "fla:tilelang": "deltaproof.backends.adapters.fla:FlaTileLang",
        "fla:intracard": "deltaproof.backends.adapters.fla:FlaIntracard",
        "flash_qla": "deltaproof.backends.adapters.flash_qla:FlashQla",
        "flash_qla:split": "deltaproof.backends.adapters.flash_qla:FlashQlaSplit",
        "flash_qla:unsplit": "deltaproof.backends.adapters.flash_qla:FlashQlaUnsplit",
        "flashinfer": "deltaproof.backends.adapters.flashinfer:FlashInfer",
        "flashinfer:split": "deltaproof.backends.adapters.flashinfer:FlashInferSplit",
        "flashinfer:unsplit": "deltaproof.backends.adapters.flashinfer:FlashInferUnsplit",
    },
    "kda": {
        "fla": "deltaproof.backends.adapters.fla:FlaKda",
        "fla:default": "deltaproof.backends.adapters.fla:FlaKdaDefault",
        "fla:tilelang": "deltaproof.backends.adapters.fla:FlaKdaTileLang",
        "fla:intracard": "deltaproof.backends.adapters.fla:FlaKdaIntracard",
    },
}
"""Operator -> name -> "module:attribute"; a mode that computes with other kernels is a name of its own."""
