"""A run's results as tables and as a plot."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import machine
from .limit import IN_FLIGHT

TITLES = {"ocr": "OCR (PP-OCRv6 small)", "faces": "faces (buffalo_s's graphs)", "clip": "CLIP image (ViT-B-32)"}

THROUGHPUT_BARS = {"ocr": 2.2, "faces": 2.5, "clip": 3.0}
"""Where the CPU has bf16, and from FULL_LOAD in flight on; elsewhere F32_THROUGHPUT_BAR."""

F32_THROUGHPUT_BAR = 1.4
P50_BAR, F32_P50_BAR = 0.5, 0.8
SHARE_BARS = {"ocr": 0.75, "faces": 0.75, "clip": 0.85}
MEMORY_BAR = 0.6
MOST_FALL = 0.05

MOST_IDLE_CORES, MOST_REPLAYER_CORES, MOST_FOREIGN_CORES = 0.02, 0.03, 0.1
"""Beyond these a run was not clean, and says so."""

Results = dict[str, Any]


def tables(results: Results) -> str:
    """Write every table that the results have, as Markdown."""
    parts = {
        "throughput": _throughput,
        "search": _search,
        "memory": _memory,
        "agreement": _agreement,
        "limit": _limit,
    }
    settings = " ".join(f"{name}={value}" for name, value in results["settings"].items()) or "the defaults"
    lines = [
        f"{results['date'][:10]}, {machine.line(results['machine'])}. Ratios are this server's figure by the "
        f"reference's, the median of {results['rounds']} rounds. This server's settings: {settings}.",
        *([f"\nOther programs that computed all the time: {beside}."] if (beside := results.get("beside")) else []),
        *(f"\n{line}" for line in _unclean(results)),
    ]
    for stage, write in parts.items():
        if stage in results:
            lines += ["", *write(results)]
    return "\n".join(lines) + "\n"


def medians(results: Results, task: str, level: str, figure: str) -> tuple[float, float, list[float]]:
    """Return a figure of a task at a level: ours, the reference's (medians of the rounds), and the rounds' ratios."""
    rounds = results["throughput"][task][level]
    mine, theirs = ([each["streams"][task][figure] for each in rounds[name]] for name in ("ours", "reference"))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(mine), statistics.median(theirs), ratios


def _throughput(results: Results) -> Iterator[str]:
    columns = ("task", "in flight", "photos/s", "reference", "ratio (rounds)", "bar")
    yield from _head(*columns, "p50, ms", "reference", "ratio", "bar", "p95, ms", "reference")
    bf16 = results["machine"]["bf16"]
    for task, levels in results["throughput"].items():
        for level in levels:
            ours, theirs, ratios = medians(results, task, level, "per_s")
            p50, p50_theirs, p50_ratios = medians(results, task, level, "p50_ms")
            p95, p95_theirs, _ = medians(results, task, level, "p95_ms")
            ratio, p50_ratio = statistics.median(ratios), statistics.median(p50_ratios)
            least = THROUGHPUT_BARS[task] if bf16 else F32_THROUGHPUT_BAR
            bar = _verdict(ratio >= least, f"≥ {least:g}") if int(level) >= 4 else ""
            most = P50_BAR if bf16 else F32_P50_BAR
            p50_bar = _verdict(p50_ratio <= most, f"≤ {most:g}") if level == "1" else ""
            yield (
                f"| {TITLES[task]} | {level} | {ours:.2f} | {theirs:.2f} "
                f"| **{ratio:.2f}** ({min(ratios):.2f}–{max(ratios):.2f}) | {bar} "
                f"| {p50:.0f} | {p50_theirs:.0f} | {p50_ratio:.2f} | {p50_bar} | {p95:.0f} | {p95_theirs:.0f} |"
            )
    yield from _flatness(results)


def _flatness(results: Results) -> Iterator[str]:
    """Say how far throughput falls as more is in flight, and how p95 grows with the queue."""
    yield ""
    for task, levels in results["throughput"].items():
        per_s = [medians(results, task, level, "per_s")[0] for level in levels]
        p95 = {int(level): medians(results, task, level, "p95_ms")[0] for level in levels}
        fall = max(1 - value / max(per_s[: i + 1]) for i, value in enumerate(per_s))
        fewest, most = min(p95), max(p95)
        yield (
            f"- {TITLES[task]}, {fewest} to {most} in flight: throughput falls by {fall:.1%} at most "
            f"({_verdict(fall <= MOST_FALL, f'≤ {MOST_FALL:.0%}')}); p95 grows {p95[most] / p95[fewest]:.1f} times, "
            f"the queue {most / fewest:.0f} times."
        )


def _search(results: Results) -> Iterator[str]:
    columns = ("a text search, ms", "p50 alone", "p95 alone", "p50 behind 8 OCR and 4 CLIP images", "p95", "longest")
    yield from _head(*columns, "p95 beyond alone", "bar")
    longest = results["search"]["longest_call_ms"]
    for name in ("ours", "reference"):
        alone, busy = (results["search"][name][each]["streams"]["search"] for each in ("alone", "busy"))
        beyond = busy["p95_ms"] - alone["p95_ms"]
        bar = _verdict(beyond <= longest, f"≤ {longest:.0f} (the text detector's call)") if name == "ours" else ""
        yield (
            f"| {name} (of {busy['count']}) | {alone['p50_ms']:.0f} | {alone['p95_ms']:.0f} | {busy['p50_ms']:.0f} "
            f"| {busy['p95_ms']:.0f} | {busy['max_ms']:.0f} | {beyond:.0f} | {bar} |"
        )


def _memory(results: Results) -> Iterator[str]:
    held = results["memory"]
    yield from _head("memory (PSS) with all tasks loaded, MB", "ours", "reference", "ratio", "bar")
    for when, words in {
        "busy": "right after 8 in flight of each",
        "at rest": "at rest, a quarter of a minute on",
    }.items():
        ours, reference = held["ours"][when], held["reference"][when]
        bar = _verdict(ours <= MEMORY_BAR * reference, f"≤ {MEMORY_BAR:g}")
        yield f"| {words} | {ours:.0f} | {reference:.0f} | **{ours / reference:.2f}** | {bar} |"


def _agreement(results: Results) -> Iterator[str]:
    yield from _head("answers against the reference's", "of", "", "bar")
    for each in results["agreement"]:
        yield f"| {each['what']} | {each['of']} | {each['outcome']} | {_verdict(each['holds'], each['bar'])} |"


def _limit(results: Results) -> Iterator[str]:
    columns = ("the limit", "photos/s", "graphs at their best", "decode", "form")
    yield from _head(*columns, f"reached at {IN_FLIGHT} in flight", "bar")
    for task, found in results["limit"].items():
        graphs = "; ".join(
            f"{best['graph']} {best['ms']:.1f} ms ({best['engine']}, {best['streams']} streams, batch {best['batch']})"
            for best in found["graphs"]
        )
        before, after = (per_s / found["per_s"] for per_s in found["served_per_s"])
        part = (before + after) / 2
        share = f"**{part:.0%}** ({before:.0%} before, {after:.0%} after)"
        bar = _verdict(part >= SHARE_BARS[task], f"≥ {SHARE_BARS[task]:.0%}")
        yield (
            f"| {TITLES[task]} | {found['per_s']:.1f} | {graphs} | {found['decode_ms']:.1f} ms "
            f"| {found['form_ms']:.2f} ms | {share} | {bar} |"
        )


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _verdict(holds: bool, bar: str) -> str:
    return f"{bar} {'✓' if holds else '✗'}"


def _unclean(results: Results) -> Iterator[str]:
    """Say how busy the replayer, the server that was not measured and everybody else were, and warn of too much."""
    shares: dict[str, list[float]] = {"replayer": [], "the idle server": [], "others": []}
    for levels in results.get("throughput", {}).values():
        for rounds in levels.values():
            for name, idle in (("ours", "reference"), ("reference", "ours")):
                for each in rounds[name]:
                    cores = each["cores"]
                    shares["replayer"].append(cores["replayer"])
                    shares["the idle server"].append(cores[idle])
                    shares["others"].append(cores["machine"] - sum(cores[who] for who in (name, idle, "replayer")))
    limits = (MOST_REPLAYER_CORES, MOST_IDLE_CORES, MOST_FOREIGN_CORES)
    for (who, values), most in zip(shares.items(), limits, strict=True):
        if values:
            warning = " **Too much for these figures to count.**" if statistics.median(values) > most else ""
            yield f"Busy beside the server measured: {who}, {statistics.median(values):.1%} of a core.{warning}"


def plot(results: Results, path: Path) -> None:
    """Draw throughput by requests in flight, a panel for each task."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    tasks = results["throughput"]
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False)
    for panel, (task, levels) in zip(panels[0], tasks.items(), strict=True):
        counts = [int(level) for level in levels]
        pairs = [medians(results, task, level, "per_s")[:2] for level in levels]
        for label, values in zip(("this server", "stock-like reference"), zip(*pairs, strict=True), strict=True):
            panel.plot(counts, values, "o-", label=label)
        if task in results.get("limit", {}):
            panel.axhline(results["limit"][task]["per_s"], linestyle="--", color="grey", label="bare graphs")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set_ylim(bottom=0)
        panel.set(title=TITLES[task], xlabel="requests in flight", ylabel="photos/s")
    panels[0][0].legend()
    found = results["machine"]
    figure.suptitle(f"{found['cores']} cores of {found['cpu']}, bf16: {'yes' if found['bf16'] else 'no'}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
