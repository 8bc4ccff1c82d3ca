"""Tables for people: Markdown from the results, and what differs from older ones."""

from collections.abc import Callable
from typing import Any

from .summary import (
    AIM_CONNECTIONS,
    AIM_RATIO,
    Cell,
    Ratio,
    SideSummary,
    cell_key,
    cpu_ratio,
    runs_of,
    side_summary,
    sides_of,
    throughput_ratio,
    total_us,
)

Results = dict[str, Any]

# (mode, Redis' side, heading); a table comes out for each that has cells
TABLES = (
    ("primary-only", "redis", "Primary only"),
    ("replicated", "redis", "Replicated; Redis with `WAIT` after each command"),
    ("replicated", "redis-batch", "Replicated; Redis with one `WAIT` after each batch"),
)
COLUMNS = (
    "connections", "pipeline", "Holdfast op/s", "Redis op/s", "ratio", "lowest to highest",
    "CPU us/op Holdfast", "CPU us/op Redis", "CPU ratio", "p50 ms", "p99 ms", "busy",
)  # fmt: skip
BACKUP_COLUMN = "backup CPU us/op"
CROSSCHECK_COLUMNS = (
    "connections", "pipeline", "LOCK op/s", "SET NX PX op/s", "ratio",
    "CPU us/op", "p50 ms", "p99 ms",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "mode", "connections", "pipeline", "Holdfast kop/s", "CPU us/op",
    "throughput ratio", "CPU ratio",
)  # fmt: skip


def progress_line(cell: Cell, round_index: int, rounds: int) -> str:
    """One line on the latest round of a cell."""
    mode, connections, pipeline = cell_key(cell)
    latest = cell["rounds"][-1]
    figures = ", ".join(
        f"{side} {run['throughput_per_s']:,.0f} op/s {total_us(run):.1f} us"
        for side, run in latest.items()
    )
    return f"{round_index + 1}/{rounds} {mode:12} c={connections:<3} P={pipeline:<2}  {figures}"


def table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table, its columns lined up for those who read it as text."""
    widths = [max(len(row[i]) for row in [list(columns), *rows]) for i in range(len(columns))]

    def line(words: list[str] | tuple[str, ...]) -> str:
        return (
            "| " + " | ".join(w.rjust(width) for w, width in zip(words, widths, strict=True)) + " |"
        )

    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)])


def both(ours: SideSummary, theirs: SideSummary, show: Callable[[SideSummary], str]) -> str:
    """Holdfast's figure and Redis', in one field."""
    return f"{show(ours)} / {show(theirs)}"


def throughput_text(side: SideSummary) -> str:
    """Operations a second; starred where the generator, not the server, was the bottleneck."""
    return f"{side.throughput_per_s:,.0f}{'*' if side.is_generator_bound else ''}"


def cpu_text(side: SideSummary) -> str:
    """The primary's microseconds: all (user + system)."""
    return f"{side.cpu_us:.2f} ({side.user_us:.2f} + {side.system_us:.2f})"


def busy_text(side: SideSummary) -> str:
    """How much of a core the primary and the generator had."""
    return f"{side.primary_busy:.0%}, {side.generator_busy:.0%}"


def cell_row(cell: Cell, other: str) -> list[str]:
    """One row of a table."""
    ours, theirs = (side_summary(runs_of(cell, side)) for side in ("holdfast", other))
    ratio = throughput_ratio(cell, other)
    row = [
        str(cell["connections_count"]),
        str(cell["pipeline"]),
        throughput_text(ours),
        throughput_text(theirs),
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        cpu_text(ours),
        cpu_text(theirs),
        f"{cpu_ratio(cell, other).median:.2f}",
        both(ours, theirs, lambda side: f"{side.p50_ms:.3f}"),
        both(ours, theirs, lambda side: f"{side.p99_ms:.3f}"),
        both(ours, theirs, busy_text),
    ]
    if ours.backup_us is not None:
        row.append(both(ours, theirs, lambda side: f"{side.backup_us:.2f}"))
    return row


def mode_section(results: Results, mode: str, other: str, heading: str) -> str:
    """A heading and a table; "" if nothing of the kind was measured."""
    cells = [c for c in results["cells"] if c["mode"] == mode and other in sides_of(c)]
    if not cells:
        return ""
    columns = COLUMNS if mode == "primary-only" else (*COLUMNS, BACKUP_COLUMN)
    return f"## {heading}\n\n{table(columns, [cell_row(cell, other) for cell in cells])}\n"


def aim_line(mode: str, ratio: Ratio) -> str:
    """Whether the aim of one mode was reached."""
    verdict = "reached" if ratio.median >= AIM_RATIO else "NOT reached"
    return (
        f"- {mode}, {AIM_CONNECTIONS} connections, no pipeline: {ratio.median:.2f} of Redis'"
        f" throughput ({ratio.low:.2f} to {ratio.high:.2f}); aim {AIM_RATIO}: {verdict}"
    )


def aims(results: Results) -> str:
    """The figures that the project set itself, first."""
    wanted = [c for c in results["cells"] if cell_key(c)[1:] == (AIM_CONNECTIONS, 1)]
    return "\n".join(aim_line(cell["mode"], throughput_ratio(cell)) for cell in wanted)


def crosscheck_row(row: dict[str, Any]) -> list[str]:
    """One row of the redis-benchmark table."""
    ours, theirs = row["holdfast"], row["redis"]

    def pair(show: Callable[[dict[str, float]], str]) -> str:
        return f"{show(ours)} / {show(theirs)}"

    return [
        str(row["connections_count"]),
        str(row["pipeline"]),
        f"{ours['throughput_per_s']:,.0f}",
        f"{theirs['throughput_per_s']:,.0f}",
        f"{row['ratio']:.2f}",
        pair(lambda side: f"{side['user_us'] + side['system_us']:.2f}"),
        pair(lambda side: f"{side['p50_ms']:.3f}"),
        pair(lambda side: f"{side['p99_ms']:.3f}"),
    ]


def crosscheck_section(results: Results) -> str:
    """What redis-benchmark says; "" if it was not asked."""
    if not results["crosscheck"]:
        return ""
    rows = table(CROSSCHECK_COLUMNS, [crosscheck_row(row) for row in results["crosscheck"]])
    return f"## Cross-check: redis-benchmark, single commands, primary only\n\n{rows}\n"


def machine_text(machine: dict[str, Any]) -> str:
    """Where, when and of what."""
    m = machine
    return f"""\
Measured {m["date"]} on {m["cores_count"]} cores ({m["cpu"]}), {m["memory_gib"]} GiB, \
Linux {m["linux"]};
Holdfast {m["holdfast"]}, Python {m["python"]}, gevent {m["gevent"]}, hiredis {m["hiredis"]}; \
Redis {m["redis"]}.
Load average before: {m["load_average_before"]:.2f}; CPU time stolen by the hypervisor: \
{m["stolen_part"]:.1%}.
"""


def preamble(results: Results) -> str:
    """Where, when, of what and how."""
    settings = results["settings"]
    return f"""\
{machine_text(results["machine"])}\
`{results["command"]}`: {settings["rounds"]} rounds of {settings["seconds"]:g} s \
after {settings["warmup_seconds"]:g} s of warm-up; {settings["request_ids"]} request ids.
"""


LEGEND = """\
Medians over the rounds; a ratio is Holdfast / Redis, the median of each round's own, so less noisy
than the quotient of the medians. CPU is the primary's, all (user + system); *busy* is how much of a
core the primary and the generator had, and a star marks a throughput that the generator limited.
Fields with a slash: Holdfast / Redis. The README says more.
"""


def markdown(results: Results, plot_name: str | None) -> str:
    """All of it."""
    parts = ["# Holdfast beside Redis\n", preamble(results)]
    if results["failures"]:
        failures = "\n".join(f"- {failure}" for failure in results["failures"])
        parts.append(f"## FAILED: do not use these figures\n\n{failures}\n")
    parts += [aims(results) + "\n", LEGEND]
    if plot_name:
        parts.append(f"![Throughput and CPU time]({plot_name})\n")
    parts += [mode_section(results, *wanted) for wanted in TABLES]
    parts.append(crosscheck_section(results))
    return "\n".join(part for part in parts if part.strip())


def change(old: float, new: float) -> str:
    """From, to, and by how much."""
    return f"{old:,.2f} -> {new:,.2f} ({new / old - 1:+.0%})" if old else f"{old} -> {new:,.2f}"


def comparison_row(old: Cell, new: Cell) -> list[str]:
    """How one cell moved."""
    before, after = (side_summary(runs_of(cell, "holdfast")) for cell in (old, new))
    return [
        *(str(part) for part in cell_key(new)),
        change(before.throughput_per_s / 1000, after.throughput_per_s / 1000),
        change(before.cpu_us, after.cpu_us),
        change(throughput_ratio(old).median, throughput_ratio(new).median),
        change(cpu_ratio(old).median, cpu_ratio(new).median),
    ]


def comparison(old: Results, new: Results) -> str:
    """The cells that both results have, side by side. The ratios bear a change of machine."""
    old_cells = {cell_key(cell): cell for cell in old["cells"]}
    rows = [
        comparison_row(old_cells[cell_key(cell)], cell)
        for cell in new["cells"]
        if cell_key(cell) in old_cells
    ]
    title = f"# {old['machine']['date']} -> {new['machine']['date']}"
    return f"{title}\n\n{table(COMPARISON_COLUMNS, rows)}\n"
