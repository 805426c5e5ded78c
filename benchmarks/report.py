"""The tables of docs, made from the results of benchmark.py and ablate.py and never typed."""

import json
from pathlib import Path
from statistics import mean

from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines

PERFORMANCE = Path("docs/performance.md")
RESULTS = Path("docs/results.md")
BEGIN, END = (
    "<!-- performance: python benchmark.py --cfg.suite table -->",
    "<!-- end of performance -->",
)
RUNS = "<!-- speedruns: python benchmark.py --cfg.suite table -->", "<!-- end of speedruns -->"


def table(results: Path) -> str:
    """Markdown: per machine the ratios of every variant to its baseline, with memory and share of the ceiling."""
    parts = []
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        for row in record["rows"]:
            if row["variant"] != row["baseline"]:
                base = next(
                    r
                    for r in record["rows"]
                    if (r["case"], r["variant"]) == (row["case"], row["baseline"])
                )
                where = (
                    record["device"],
                    f"torch {record['torch']}",
                    f"threads: {record['threads']}",
                )
                parts.append((*where, _line(row, base)))
    if not parts:
        raise UserError(f"there are no results in {results}: run `python benchmark.py` first")
    lines = []
    for machine in dict.fromkeys(part[:3] for part in parts):
        lines += [
            f"*{', '.join(machine)}*",
            "",
            "| | against | times as fast | memory | of the ceiling |",
        ]
        lines += [
            "|---|---|---|---|---|",
            *(line for *where, line in parts if tuple(where) == machine),
            "",
        ]
    return "\n".join(lines).strip()


def _line(row: dict, base: dict) -> str:
    ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
    memory = f"1/{base['peak bytes'] / row['peak bytes']:.1f}" if "peak bytes" in row else ""
    share = f"{row['share']:.0%}" if "share" in row else ""
    return f"| {row['case']}: {row['variant']} | {row['baseline']} | {ratio} | {memory} | {share} |"


def ablations(records: dict[str, dict], columns: dict[str, int]) -> str:
    """Markdown: for every choice its variants, by the columns (with as many digits) that it has values of."""
    lines = []
    for choice, record in records.items():
        rows = record["rows"]
        seeds = len({row["seed"] for row in rows})
        shown = {
            label: digits for label, digits in columns.items() if any(label in row for row in rows)
        }
        scale = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in record["scale"].items())
        among = (
            f"{seeds} seeds"
            if "lam_steps" in record["scale"]
            else f"{seeds} trained worlds (`--cfg.worlds`)"
        )
        measured = f"`python ablate.py --cfg.choices {choice}`: {among}, {scale}"
        lines += [f"### {record['about']}", "", measured, ""]
        lines += ["| " + " | ".join(["", *shown]) + " |", "|---" * (len(shown) + 1) + "|"]
        for name in dict.fromkeys(row["name"] for row in rows):
            cells = (_cell(rows, name, label, digits) for label, digits in shown.items())
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def _cell(rows: list[dict], name: str, label: str, digits: int) -> str:
    """The mean over seeds; for all but the first variant also the range of differences to it, seed by seed."""
    base = {row["seed"]: row[label] for row in rows if row["name"] == rows[0]["name"]}
    own = {row["seed"]: row[label] for row in rows if row["name"] == name}
    gains, shown = [own[seed] - base[seed] for seed in own], f"{mean(own.values()):.{digits}f}"
    return (
        shown
        if name == rows[0]["name"]
        else f"{shown} ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})"
    )


def speedruns(records: Path) -> str:
    """Markdown: the records of speedrun.py side by side, by their headlines."""
    runs = [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]
    if not runs:
        raise UserError(f"there are no records in {records}: run `python speedrun.py` first")
    configs = [run["config"] for run in runs]
    lines = [
        "| | "
        + " | ".join(f"{c['preset']}, {c['minutes']:g} min, seed {c['seed']}" for c in configs)
        + " |"
    ]
    lines += ["|---" * (len(runs) + 1) + "|"]

    def line(label: str, cells: list[str]) -> None:
        lines.append("| " + " | ".join([label, *cells]) + " |")

    line("machine", [run["device"] for run in runs])
    line("minutes taken", [f"{run['minutes']:.1f}" for run in runs])
    stages = list(
        dict.fromkeys(
            name for run in runs for name in run["stages"] if "steps" in run["stages"][name]
        )
    )
    steps = [
        [str(run["stages"].get(stage, {}).get("steps", "–")) for stage in stages] for run in runs
    ]
    line("steps: " + ", ".join(stages), [", ".join(each) for each in steps])
    for row in headlines.ROWS:
        values = [run["results"].get(row.label) for run in runs]
        if row.summary and any(values):
            line(row.label, [headlines.show(x, row.digits, row.unit) for x in values])
    return "\n".join(lines)


def put(path: Path, begin: str, end: str, content: str) -> None:
    """Replace what stands between two marks in a file."""
    text = path.read_text()
    if begin not in text or end not in text:
        raise UserError(
            f"{path} lacks the lines {begin} and {end}: put them where the table should stand"
        )
    before, rest = text.split(begin, 1)
    path.write_text(f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}")
