"""The README's performance table, made from the results of benchmark.py and never typed."""

import json
from pathlib import Path

from genie_fn.errors import UserError

BEGIN, END = "<!-- performance: python benchmark.py --cfg.suite table -->", "<!-- end of performance -->"


def table(results: Path) -> str:
    """Markdown: per machine the ratios of every variant to its baseline, with memory and share of the ceiling."""
    parts = []
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        for row in record["rows"]:
            if row["variant"] != row["baseline"]:
                base = next(r for r in record["rows"] if (r["case"], r["variant"]) == (row["case"], row["baseline"]))
                where = record["device"], f"torch {record['torch']}", f"threads: {record['threads']}"
                parts.append((*where, _line(row, base)))
    if not parts:
        raise UserError(f"there are no results in {results}: run `python benchmark.py` first")
    lines = []
    for machine in dict.fromkeys(part[:3] for part in parts):
        lines += [f"*{', '.join(machine)}*", "", "| | against | times as fast | memory | of the ceiling |"]
        lines += ["|---|---|---|---|---|", *(line for *where, line in parts if tuple(where) == machine), ""]
    return "\n".join(lines).strip()


def _line(row: dict, base: dict) -> str:
    ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
    memory = f"1/{base['peak bytes'] / row['peak bytes']:.1f}" if "peak bytes" in row else ""
    share = f"{row['share']:.0%}" if "share" in row else ""
    return f"| {row['case']}: {row['variant']} | {row['baseline']} | {ratio} | {memory} | {share} |"


def write(results: Path, readme: Path) -> None:
    """Put the table between the marks in a README."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme} lacks the lines {BEGIN} and {END}: put them where the table should stand")
    before, rest = text.split(BEGIN, 1)
    readme.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END, 1)[1]}")
