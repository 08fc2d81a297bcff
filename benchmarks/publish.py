"""Write the tables of README.md and docs/results.md, and README's picture, from `benchmarks/results/`.

python -m benchmarks.publish                          # after a file there has changed
python -m benchmarks.publish --check                  # exit code 1 where a page says something else
python -m benchmarks.publish --row resnet20/pruned    # one row, and the commands that make it anew
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

from benchmarks.published import Record, read_records
from benchmarks.published_picture import picture
from benchmarks.published_tables import TABLES, rounded

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/results.md")
PICTURE = "docs/accuracy-latency.svg"
MARKED = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
QUOTED = re.compile(r"(?<!± )(?<![\d.])(\d+\.\d+) % at \**(\d\.\d+)")


def with_tables(text: str, records: Mapping[str, Record]) -> str:
    """Return a page with the table between each pair of its comments written anew. Raises KeyError for an unknown name."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](records)}\n{found[3]}", text)


def unknown_quotes(text: str, records: Mapping[str, Record]) -> list[str]:
    """Return what a page quotes as `ACCURACY % at LATENCY` although no record says so, rounded as the page does."""
    return [
        found[0] for found in QUOTED.finditer(text) if not any(_says(r, found[1], found[2]) for r in records.values())
    ]


def _says(record: Record, percent: str, latency: str) -> bool:
    shares = [value for value in (record.accuracy, record.agreement) if value is not None]
    return any(rounded(value, _digits(percent)) == percent for value in shares) and any(
        rounded(value, _digits(latency)) == latency for value in record.latency
    )


def _digits(text: str) -> int:
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int), "a number that a pattern of digits has matched"
    return -exponent


def written(records: Mapping[str, Record], root: Path = ROOT) -> dict[Path, str]:
    """Return what every page and the picture should hold, by path."""
    pages = {root / page: with_tables((root / page).read_text(encoding="utf-8"), records) for page in PAGES}
    return {**pages, root / PICTURE: picture(records)}


def main(argv: list[str]) -> int:
    """Write, check, or show a row. Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    parser.add_argument("--row", help="show this row (FILE/NAME) and its commands")
    args = parser.parse_args(argv)
    records = read_records()
    if args.row is not None:
        if args.row not in records:
            sys.exit(f"error: --row {args.row}: expected one of {', '.join(records)}")
        print(json.dumps(asdict(records[args.row]), indent=1, ensure_ascii=False))
        return 0
    differ = [p for p, text in written(records).items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path, text in written(records).items() if not args.check else ():
        path.write_text(text, encoding="utf-8")
    for path in differ:
        print(f"{path.relative_to(ROOT)}: " + ("differs from benchmarks/results/" if args.check else "written"))
    return int(args.check and bool(differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
