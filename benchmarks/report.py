"""Tables of docs, generated from the results of benchmark.py, speedrun.py and ablate.py."""

import json
from pathlib import Path
from statistics import mean

from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import files

PERFORMANCE = Path("docs/performance.md")
RESULTS = Path("docs/results.md")
# The lines between which `put` writes a table.
RATIOS = (
    "<!-- performance: python benchmark.py --cfg.suite table -->",
    "<!-- end of performance -->",
)
RUNS = (
    "<!-- speedruns: python benchmark.py --cfg.suite table -->",
    "<!-- end of speedruns -->",
)


def table(results: Path) -> str:
    """Markdown: for each machine the ratios of all variants to their baselines, with memory and
    share of the ceiling."""
    lines = {}
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        machine = f"{record['device']}, torch {record['torch']}, threads: {record['threads']}"
        baselines = {
            row["case"]: row for row in record["rows"] if row["variant"] == row["baseline"]
        }
        for row in record["rows"]:
            if row["variant"] != row["baseline"]:
                line = _ratio_line(row, baselines[row["case"]])
                lines.setdefault(machine, []).append(line)
    if not lines:
        raise UserError(f"there are no results in {results}: run `python benchmark.py` first")
    head = ["against", "times as fast", "memory", "of the ceiling"]
    return "\n\n".join(
        "\n".join([f"*{machine}*", "", *_head(head), *rows]) for machine, rows in lines.items()
    )


def _ratio_line(row: dict, base: dict) -> str:
    ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
    memory = f"1/{base['peak bytes'] / row['peak bytes']:.1f}" if "peak bytes" in row else ""
    share = f"{row['share']:.0%}" if "share" in row else ""
    return _line([f"{row['case']}: {row['variant']}", row["baseline"], ratio, memory, share])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(titles: list[str]) -> list[str]:
    """The first two lines of a table, with a column without a title in front."""
    return ["| " + _line(titles), "|---" * (len(titles) + 1) + "|"]


def ablations(records: dict[str, dict], columns: dict[str, int]) -> str:
    """Markdown: for every choice its variants, in those of the columns that it has values for.

    `columns` gives the number of digits of each.
    """
    sections = []
    for choice, record in records.items():
        rows = record["rows"]
        present = {
            label: digits for label, digits in columns.items() if any(label in row for row in rows)
        }
        lines = [f"### {record['about']}", "", _ablation_scale(choice, record), ""]
        lines += _head(list(present))
        for name in dict.fromkeys(row["name"] for row in rows):
            cells = [_cell(rows, name, label, digits) for label, digits in present.items()]
            lines.append(_line([name, *cells]))
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _ablation_scale(choice: str, record: dict) -> str:
    """The command of an ablation, and the numbers of its runs and clips."""
    seeds = len({row["seed"] for row in record["rows"]})
    runs = f"{seeds} trained worlds (`--cfg.worlds`)"
    if {"lam_steps", "dynamics_steps"} & record["scale"].keys():
        runs = f"{seeds} seeds"
    scale = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in record["scale"].items())
    return f"`python ablate.py --cfg.choices {choice}`: {runs}, {scale}"


def _cell(rows: list[dict], name: str, label: str, digits: int) -> str:
    """The mean over seeds and, except for the first variant, the range of differences to the first
    variant with the same seed."""
    values = {row["seed"]: row[label] for row in rows if row["name"] == name}
    cell = f"{mean(values.values()):.{digits}f}"
    first = rows[0]["name"]
    if name == first:
        return cell
    base = {row["seed"]: row[label] for row in rows if row["name"] == first}
    gains = [values[seed] - base[seed] for seed in values]
    return f"{cell} ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})"


def speedruns(records: Path) -> str:
    """Markdown: the records of speedrun.py side by side, by their headlines."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(records.glob("*.json"))]
    if not runs:
        raise UserError(f"there are no records in {records}: run `python speedrun.py` first")
    titles = []
    for run in runs:
        config = run["config"]
        titles.append(f"{config['preset']}, {config['minutes']:g} min, seed {config['seed']}")
    lines = _head(titles)
    lines.append(_line(["machine", *(run["device"] for run in runs)]))
    lines.append(_line(["minutes taken", *(f"{run['minutes']:.1f}" for run in runs)]))
    lines.append(_steps_line([run["stages"] for run in runs]))
    for row in headlines.ROWS:
        values = [run["results"].get(row.label) for run in runs]
        if row.summary and any(values):
            cells = [headlines.show(value, row.digits, row.unit) for value in values]
            lines.append(_line([row.label, *cells]))
    return "\n".join(lines)


def _steps_line(runs: list[dict[str, dict]]) -> str:
    """The training steps of every stage; `runs` are the records' stages."""
    trained = [name for stages in runs for name, stage in stages.items() if "steps" in stage]
    names = list(dict.fromkeys(trained))
    cells = [
        ", ".join(str(stages.get(name, {}).get("steps", "–")) for name in names) for stages in runs
    ]
    return _line(["steps: " + ", ".join(names), *cells])


def put(path: Path, begin: str, end: str, content: str) -> None:
    """Replace the text between two lines of a file."""
    before, after = parts(path, begin, end)
    files.write_text(path, f"{before}{begin}\n{content}\n{end}{after}")


def parts(path: Path, begin: str, end: str) -> tuple[str, str]:
    """The text of a file before and after two lines. Raises UserError where they are missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({files.reason(error)}): name another page"
        ) from error
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(
            f"{path} lacks the lines {begin} and {end}: add them where the table belongs"
        )
    return before, after
