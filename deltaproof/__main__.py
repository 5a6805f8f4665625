"""``python -m deltaproof``."""

from __future__ import annotations

from deltaproof.cli.app import main

if __name__ == "__main__":
    main()
