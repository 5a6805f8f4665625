"""What a hazard and the story of a public bug are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "high", "medium", "low"]

SEVERITIES: dict[Severity, str] = {
    "critical": "another request's memory, or wrong numbers without a sign",
    "high": "a crash, a hang, NaN, or accuracy lost",
    "medium": "an error at the first use, or a test that cannot see a critical hazard",
    "low": "harmless today, wrong after a likely change",
}
"""What each severity means."""


@dataclass(frozen=True)
class Story:
    """One public bug, retold in our words.

    Attributes:
        repo: ``owner/name`` on GitHub.
        reference: pull request or issue (``"#1135"``), or a short commit hash.
        text: what went wrong, Markdown.
        url: where to read it; None where the reference has no page of its own.
    """

    repo: str
    reference: str
    text: str
    url: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", " ".join(self.text.split()))

    @classmethod
    def pull(cls, repo: str, number: int, text: str) -> Story:
        """Return a story told by a pull request or an issue."""
        return cls(repo, f"#{number}", text, f"https://github.com/{repo}/pull/{number}")

    @classmethod
    def commit(cls, repo: str, sha: str, text: str) -> Story:
        """Return a story told by a commit."""
        return cls(repo, sha[:8], text, f"https://github.com/{repo}/commit/{sha}")


@dataclass(frozen=True)
class Hazard:
    """One way in which kernels break their promises.

    Attributes:
        name: short name with hyphens; read it as "allow NAME".
        code: ``"HZ"`` and a number, for machines.
        severity: one of ``SEVERITIES``.
        what: the pattern, in one sentence.
        why: how it breaks, Markdown.
        avoid: how to write it right, Markdown.
        clauses: codes of the contract's clauses that it breaks.
        probes: names of the probes that make it happen; empty where only source or review shows it.
        rows: labelled public bugs of this kind known to us, fixed or standing; None where they are not counted.
        stories: the most telling of them.
        also_seen: further public references that are not retold.
    """

    name: str
    code: str
    severity: Severity
    what: str
    why: str
    avoid: str
    clauses: tuple[str, ...]
    probes: tuple[str, ...] = ()
    rows: int | None = None
    stories: tuple[Story, ...] = ()
    also_seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("what", "why", "avoid"):
            object.__setattr__(self, field, " ".join(getattr(self, field).split()))


FLA = "fla-org/flash-linear-attention"
FLASHINFER = "flashinfer-ai/flashinfer"
FLASHQLA = "QwenLM/FlashQLA"
CULA = "inclusionAI/cuLA"
TILELANG = "tile-ai/tilelang"
TILEOPS = "tile-ai/TileOPs"
SGLANG = "sgl-project/sglang"
VLLM = "vllm-project/vllm"
TRITON = "triton-lang/triton"
