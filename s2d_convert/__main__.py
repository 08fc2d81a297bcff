"""``python -m s2d_convert`` is the same as ``s2d``."""

from __future__ import annotations

from s2d_convert.cli.entry import main

if __name__ == "__main__":
    main()
