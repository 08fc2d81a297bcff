"""What comes out of the stand: a Markdown table and a plot, both from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.stand import NotRun

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MARKERS = "osD^v<>PXh*d"
Row = Mapping[str, Any]


def rows(results: Sequence[Mapping[str, Any]], setting: str) -> list[dict[str, Any]]:
    """Return one row per method, budget and searched budget: means over seeds, and the spread (standard deviation) of
    accuracy and latency where there are several seeds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        entry = result["entry"]
        measured = {**result["measured"], "reward": entry["facts"].get("reward")}
        groups.setdefault((entry["method"], entry["budget"], entry["planned"]), []).append(measured)
    made = []
    for (method, budget, planned), found in groups.items():
        accuracy = np.array([100 * m["accuracy"] for m in found])
        latency = np.array([m["latency"][setting]["mean"] for m in found])
        gaps = [m["latency"][setting]["mean"] / m["predicted"] - 1 for m in found if "predicted" in m]
        made.append(
            {
                "method": method,
                "budget": budget,
                "planned": planned,
                "seeds": len(found),
                "accuracy": float(accuracy.mean()),
                "accuracy_spread": float(accuracy.std(ddof=1)) if len(found) > 1 else None,
                "latency": float(latency.mean()),
                "latency_spread": float(latency.std(ddof=1)) if len(found) > 1 else None,
                "worst": float(np.mean([m["latency"][setting]["worst"] for m in found])),
                "first": float(np.mean([m["exit_share"][0] for m in found])),
                "others": {
                    s: float(np.mean([m["latency"][s]["mean"] for m in found]))
                    for s in found[0]["latency"]
                    if s != setting
                },
                "gap": float(np.mean(gaps)) if gaps else None,
                "reward": None if found[0]["reward"] is None else float(np.mean([m["reward"] for m in found])),
            }
        )
    return made


def markdown(made: Sequence[Row]) -> str:
    """Return the table; accuracy in percent, latencies relative to the static model."""
    base = next((r["accuracy"] for r in made if r["method"] == "static"), None)
    others = list(made[0]["others"]) if made else []
    heads = ["method", "budget", "seeds", "accuracy", "to static", "mean latency", "worst", *(f"at {o}" for o in others),
             "leave first", "measured to predicted", "reward in search"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in made:
        cells = [
            row["method"],
            _budget(row),
            str(row["seeds"]),
            _spread(row["accuracy"], row["accuracy_spread"], "{:.2f}"),
            "" if base is None else f"{row['accuracy'] - base:+.2f}",
            _spread(row["latency"], row["latency_spread"], "{:.3f}"),
            f"{row['worst']:.2f}",
            *(f"{row['others'][o]:.3f}" for o in others),
            f"{100 * row['first']:.0f} %",
            "" if row["gap"] is None else f"{100 * row['gap']:+.1f} %",
            "" if row["reward"] is None or row["planned"] != row["budget"] else f"{row['reward']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def reasons(not_run: Sequence[NotRun]) -> str:
    """Return a list of what could not be run and why, to stand below the table; equal reasons of a method are named once."""
    lines = dict.fromkeys(f"- `{line.method}` was not run: {line.reason}\n" for line in not_run)
    return "\n" + "".join(lines) if lines else ""


def _budget(row: Row) -> str:
    if row["budget"] is None:
        return ""
    return f"{row['budget']:g}" + ("" if row["planned"] == row["budget"] else f" (plan for {row['planned']:g})")


def _spread(value: float, spread: float | None, form: str) -> str:
    return form.format(value) + ("" if spread is None else " ± " + form.format(spread))


def plot(made: Sequence[Row], path: Path, *, title: str) -> None:
    """Plot accuracy against mean latency, one line per method."""
    figure, axes = plt.subplots(figsize=(8, 5.5), constrained_layout=True)
    methods = list(dict.fromkeys(row["method"] for row in made))
    for index, method in enumerate(methods):
        own = sorted((r for r in made if r["method"] == method), key=lambda r: r["latency"])
        axes.errorbar(
            [r["latency"] for r in own],
            [r["accuracy"] for r in own],
            xerr=[r["latency_spread"] or 0.0 for r in own],
            yerr=[r["accuracy_spread"] or 0.0 for r in own],
            marker=MARKERS[index % len(MARKERS)],
            linewidth=2 if method == "ours" else 1,
            label=method,
        )
    axes.set(xlabel="mean latency, relative to the static model", ylabel="accuracy on test images, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
