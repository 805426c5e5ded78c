"""An evaluation as one HTML file that needs nothing else: no script, no request, pictures and charts within it."""

import json
from html import escape
from typing import NamedTuple

from genie_fn.evaluation.report import charts, headlines
from genie_fn.evaluation.report.markup import WAYS, clips, document, image, table
from genie_fn.evaluation.report.pictures import Picture


class Pictures(NamedTuple):
    """Dreams from lively to still, the worst of them, examples per action, a reconstruction, and held keys."""

    clips: list[Picture]
    worst: list[Picture]
    actions: list[Picture]
    reconstruction: Picture
    held: list[Picture] = []


def page(record: dict, pictures: Pictures, cloned: dict | None = None) -> str:
    """The report of one world, with clone.py's record where there is one."""
    where, run = record["machine"], record["config"]["run"]
    data, commit = record["data"], (where["commit"] or "unknown")[:12]
    says = "".join(f"<li>{escape(sentence)}</li>" for sentence in headlines.verdicts(record))
    about = (
        f"{data['clips']} held-out clips ({data['split']}, {data['levels']} levels) · "
        f"{where['date']} · commit {commit}"
    )
    body = [
        f"<h1>{escape(run)}</h1><p class=soft>{escape(about)}</p><ul class=verdicts>{says}</ul>",
        _tiles(record),
        _dreams(pictures),
        _published(record)
        if record["data"]["meta"].get("collection", {}).get("env") == "coinrun"
        else "",
        *(_protocol(record, prompt) for prompt in record["rollouts"]),
        _held(record, pictures.held),
        _actions(record, pictures.actions),
        clone_section(cloned) if cloned else "",
        _tokenizer(record, pictures.reconstruction),
        _origin(record),
    ]
    return document(f"Evaluation of {run}", body)


def _tiles(record: dict) -> str:
    chosen = (
        ("Δ₄ PSNR, random actions, moving clips", "rollouts.1.moving.delta.random@4", 2, " dB"),
        ("1 → 10 frames, moving clips", "rollouts.1.moving.psnr.own@average", 2, " dB"),
        ("of these, copy-last scores", "rollouts.1.moving.psnr.copy_last@average", 2, " dB"),
        ("information with recorded actions", "actions.true.all.information", 3, ""),
        ("tokenizer, PSNR", "reconstruction.psnr", 2, " dB"),
    )
    tiles = []
    for label, path, digits, unit in chosen:
        values = headlines.find(record, path)
        if values is not None:
            ends = headlines.show(values, digits).partition(" ")[2]
            value = headlines.show(values[:1], digits, unit)
            tiles.append(
                f"<div>{escape(label)}<b>{escape(value)}</b><small>{escape(ends)}</small></div>"
            )
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _dreams(pictures: Pictures) -> str:
    return (
        "<h2>Real above, dreamed below</h2><p>Above the real clip, in the middle the dream from its first frame with "
        "the clip's own actions, below the same dream with another clip's actions. From lively clips to still ones:</p>"
        f"{clips(pictures.clips)}<h3>The worst of all</h3><p>Lowest PSNR with the own actions.</p>"
        f"{clips(pictures.worst)}"
    )


def _published(record: dict) -> str:
    rows = []
    for it in headlines.REFERENCES:
        fits = it.actions in ("", record["actions"]["kind"])
        ours = (
            headlines.show(headlines.find(record, it.path), it.digits, it.unit)
            if fits
            else "another kind of world"
        )
        rows.append([it.what, it.published, ours, it.source])
    note = (
        "Published numbers are of CoinRun at 64 × 64 too, but of other data, agents and budgets (GenieRedux: about 56 "
        "A100-days): they say how far there is to go. Ours are of all clips, moving or not."
    )
    head = ["CoinRun, 64 × 64", "published", "this world", "source"]
    return f"<h2>Beside published results</h2><p>{note}</p>{table(head, rows, left=(3,))}"


def _line(name: str, values: dict) -> charts.Line:
    return charts.Line(name, values["mean"], values["low"], values["high"])


def _protocol(record: dict, prompt: str) -> str:
    scores = record["rollouts"][prompt]
    frames = len(scores["all"]["psnr"]["own"]["mean"])
    used = [way for way in WAYS if way in scores["all"]["psnr"]]
    keys = "".join(f'<span class="key {way}"><i></i>{escape(WAYS[way])}</span>' for way in used)
    drawn = []
    for which, title in (("moving", "moving half"), ("all", "all clips")):
        psnr, delta = scores[which]["psnr"], scores[which]["delta"]
        others = [
            charts.Line(way, psnr[way]["mean"]) for way in used[1:]
        ]  # their intervals would hide each other
        drawn.append(charts.lines([_line("own", psnr["own"]), *others], f"PSNR, {title}", "dB"))
        cost = [_line(way, delta[way]) for way in ("random", "shuffled")]
        drawn.append(
            charts.lines(cost, f"Δ_t PSNR: what wrong actions cost, {title}", "dB", zero=True)
        )
    return (
        f"<h2>{prompt} → {frames} frames</h2><p>Means over clips with 95% intervals (bootstrap over clips). The moving "
        f"half is that in which copying the last frame fails most at t = 4. Where a frame equals the last, copying "
        "it counts 100 dB in the mean; pooled PSNR is that of the mean squared error, in which it does not.</p>"
        f"<p>{keys}</p>"
        f"<div class=charts>{''.join(drawn)}</div>{_averages(scores, used)}{_by_frame(scores)}"
    )


def _averages(scores: dict, used: list[str]) -> str:
    kinds = {"psnr": "PSNR", "pooled": "pooled PSNR", "ssim": "SSIM"}
    cells = [(kind, which) for kind in kinds for which in ("moving", "all")]
    head, rows = ["mean over the frames", *(f"{kinds[kind]}, {which}" for kind, which in cells)], []
    for way in used:
        values = [(scores[which][kind][way]["average"], kind) for kind, which in cells]
        shown = [
            headlines.show(x if kind == "psnr" else x[:1], 3 if kind == "ssim" else 2)
            for x, kind in values
        ]
        rows.append([WAYS[way], *shown])
    return table(head, rows)


def _by_frame(scores: dict) -> str:
    def row(label: str, values: dict) -> list[str]:
        ends = zip(values["mean"], values["low"], values["high"], strict=True)
        return [label, *(headlines.show([*triple]) for triple in ends)]

    names = {
        "random": "random actions",
        "shuffled": "another clip's actions",
        "copy_last": "copy-last, pooled",
    }
    halves, ways = ("moving", "all"), {"own": "own actions", "copy_last": "copy-last"}
    psnr = [
        row(f"PSNR, {ways[way]}, {which}", scores[which]["psnr"][way])
        for which in halves
        for way in ways
    ]
    rows = [
        row(f"gain over {names[n]}, {which}", scores[which]["delta"][n])
        for which in halves
        for n in names
    ]
    head = ["", *(f"t = {t}" for t in range(1, len(rows[0])))]
    return f"<details><summary>PSNR and Δ_t PSNR by frame, in numbers</summary>{table(head, psnr + rows)}</details>"


def _actions(record: dict, strips: list[Picture]) -> str:
    it = record["actions"]
    latent, count, names = it["kind"] == "latent", it["actions"], it["names"]
    parts = [
        f"<h2>{'Latent' if latent else 'Recorded'} actions</h2><p>{it['state'].capitalize()}. Perplexity "
        f"{it['perplexity']:.2f} of {count}; {it['transitions']} transitions of {it['levels']} levels.</p>",
        charts.bars(it["share"], names, "share of transitions", "own"),
        "<h3>What each does</h3><p>Mean movement of the picture in pixels per frame, dx to the right and dy down, with "
        "standard errors; the view follows the agent, so the picture moves against it. Where it moves further than on "
        "average by more than three standard errors, that is said.</p>",
        _per_action(it, names),
    ]
    shown = (f"<h3>{escape(p.caption)}</h3>{image(p, 'strip')}" for p in strips)
    parts.append(
        "<details open><summary>Examples: frame above, next frame below, and what changed (grey: nothing)</summary>"
        f"{''.join(shown)}</details>"
    )
    if "true" in it:
        parts += [_told(it), _table(it, names)]
    return "".join(parts)


def _held(record: dict, films: list[Picture]) -> str:
    it = record["actions"].get("held")
    if not it:
        return ""
    rows = []
    for who in ("real", "dreamed"):
        rows += [[f"{key}, {who}", ", ".join(f"{x:+d}" for x in it[who][key])] for key in it[who]]
    return (
        f"<h2>Held keys</h2><p>{escape(headlines.held(record))} From one real frame, where the real agent can go both "
        f"ways, each key is held for {it['frames']} frames; real above, dreamed below.</p>{clips(films)}"
        f"{table(['pixels that the agent goes right', 'from each start'], rows, left=(1,))}"
    )


def _per_action(it: dict, names: list[str]) -> str:
    moves = it["displacement"]
    rows = []
    for i, name in enumerate(names):
        way = "left" if i in moves["left"] else "right" if i in moves["right"] else ""
        cells = [_moved(moves, axis, i) for axis in ("dx", "dy")]
        rows.append([name, f"{it['share'][i]:.1%}", *cells, way, *_means(it, i)])
    p = f"Differences between actions: p = {moves['dx_p']:.3f} (dx), {moves['dy_p']:.3f} (dy), by permuting clips."
    head = ["", "share", "dx", "dy", "further to the"]
    head += ["most often means"] if "true" in it else []
    return table(head, rows) + f"<p>{p}</p>"


def _moved(moves: dict, axis: str, i: int) -> str:
    mean, error = moves[axis][i], moves[f"{axis}_error"][i]
    return "–" if mean is None else f"{mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def _means(it: dict, code: int) -> list[str]:
    if "true" not in it:
        return []
    column = [row[code] for row in it["true"]["all"]["table"]]
    best = column.index(max(column))
    return [
        f"{it['true']['names'][best]} ({column[best] / sum(column):.0%})" if sum(column) else "–"
    ]


def _told(it: dict) -> str:
    halves_of = it["true"]["all"]["halves_of"]
    head = [
        "",
        "NMI",
        "by chance",
        "p",
        f"halves of the {halves_of}",
        "accuracy of the best map",
        "chance",
        "stable",
    ]
    rows, probe = [], it.get("probe")
    for kind, label in (("all", "all recorded actions"), ("sides", "left / none / right")):
        if kind in it["true"]:
            x = it["true"][kind]
            numbers = [f"{x[name]:.3f}" for name in ("information", "by_chance", "p")]
            halves = ", ".join(f"{value:.3f}" for value in x["halves"])
            rows.append(
                [
                    label,
                    *numbers,
                    halves,
                    f"{x['accuracy']:.3f}",
                    f"{x['chance']:.3f}",
                    f"{x['stability']:.0%}",
                ]
            )
            if probe:
                y = probe[kind]
                rows.append(
                    [
                        "— supervised probe",
                        f"{y['information']:.3f}",
                        "",
                        "",
                        "",
                        f"{y['accuracy']:.3f}",
                        "",
                        "",
                    ]
                )
    text = (
        "NMI is normalised mutual information; by chance: where clips are given other clips' codes. The best map from "
        f"code to action is fitted on one half of the {halves_of} and tested on the other; stable is the share of "
        "transitions whose code means the same in both halves."
    )
    if probe:
        ratios = ", ".join(
            f"{headlines.show([x])} ({kind})" for kind, x in probe["ratio"].items() if x is not None
        )
        text += (
            f" The probe, the ceiling, is a convolutional network of {probe['parameters']:,} parameters (the latent "
            f"action model's encoder has {probe['encoder_parameters']:,}), trained on recorded actions of the train "
            f"split for {probe['steps']} steps ({probe['seconds']:.0f} s). Latent over probe: {ratios}."
        )
    return (
        f"<h3>What they tell of the recorded actions</h3>{table(head, rows)}<p>{escape(text)}</p>"
    )


def _table(it: dict, names: list[str]) -> str:
    true, moves = it["true"], it["true"]["displacement"]
    lines = []
    for i, row in enumerate(true["all"]["table"]):
        if total := sum(row):
            cells = "".join(
                f'<td style="background: rgba(var(--heat), {x / total:.2f})">{x}</td>' for x in row
            )
            ends = f"<td>{_moved(moves, 'dx', i)}</td><td>{_moved(moves, 'dy', i)}</td>"
            lines.append(f"<tr><td>{escape(true['names'][i])}</td>{cells}{ends}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ["recorded", *names, "dx", "dy"])
    made = f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    return f"<h3>Recorded against latent</h3><p>Transitions; the shade is the share of the row.</p>{made}"


def _tokenizer(record: dict, picture: Picture) -> str:
    it, model = record["reconstruction"], record["dynamics"]
    rows = [
        ["PSNR, SSIM", f"{it['psnr']:.2f} dB, {it['ssim']:.3f}"],
        ["codes used, perplexity", f"{it['codes_used']} of {it['codes']}, {it['perplexity']:.1f}"],
        ["entropy of the codes", f"{it['unigram_entropy']:.2f} nats per token"],
        [
            "dynamics, cross-entropy of hidden tokens",
            f"{model['cross_entropy']:.2f} nats per token",
        ],
        ["dynamics, hidden tokens guessed right", f"{model['accuracy']:.1%}"],
    ]
    names = {"reconstruction": "tokenizer"} | {
        p: f"{p} → {record['config']['frames']} dreamed" for p in record["rollouts"]
    }
    for of, values in record["perceptual"].items():
        rows += [[f"{name.upper()}, {names[of]}", f"{value:.3f}"] for name, value in values.items()]
    return (
        f"<h2>Tokenizer and dynamics</h2>{table(['', ''], rows)}<p class=soft>{escape(picture.caption)}</p>"
        f"{image(picture, 'strip')}"
    )


def _origin(record: dict) -> str:
    shown = {name: record[name] for name in ("config", "models", "data", "machine", "seconds")}
    where, data = record["machine"], record["data"]
    rows = [
        ["commit", where["commit"] or "unknown"],
        ["data", f"{data['root']}, sha256 {data['hash']}"],
    ]
    rows += [["machine", f"{where['device']}, {where['threads']} threads, torch {where['torch']}"]]
    rows += [[f"parameters, {name}", f"{count:,}"] for name, count in record["models"].items()]
    rows += [
        ["seconds", ", ".join(f"{name} {value:.0f}" for name, value in record["seconds"].items())]
    ]
    text = escape(json.dumps(shown, indent=1))
    return (
        f"<h2>Where this comes from</h2>{table(['', ''], rows, left=(1,))}<p>What every number means: "
        "docs/evaluation.md; all of them: metrics.json.</p>"
        f"<details><summary>Configuration</summary><pre>{text}</pre></details>"
    )


CLONED = {
    "random": "random",
    "frequencies": "as often as the expert, blindly",
    "commonest": "always the expert's commonest",
    "oracle": "oracle, of real actions",
}


def _player(name: str) -> str:
    """`clone 50, commonest` in words: of latent actions, translated by 50 labels, each to its commonest real one."""
    return CLONED.get(name) or name.replace("clone", "latent,") + " labels" * (
        "commonest" not in name
    )


def clone_rows(record: dict) -> list[list[str]]:
    """Rows of texts of a record of clone.py: who played, the share of levels solved, by how much more than random."""

    def percent(values: list[float] | None, sign: str = "") -> str:
        return headlines.show([100 * x for x in values], 1, " %") if values else "–"

    gains = record["gains"]
    return [
        [_player(name), percent(x), percent(gains.get(name))]
        for name, x in record["shares"].items()
    ]


def clone_section(record: dict) -> str:
    """What clone.py found, for a page."""
    shares, expert, config = record["shares"], record["expert"], record["config"]
    ends = [(low, high) for _, low, high in shares.values()]
    means, names = [mean for mean, *_ in shares.values()], [_player(name) for name in shares]
    text = (
        f"Policies play {config['levels']} held-out levels of the real game, once each, after learning from "
        f"{expert['transitions']:,} transitions of solved episodes; seeds: {len(record['seeds'])}; 95% intervals by "
        "bootstrap over seeds and levels. The latent policy never sees a real action but for so many labelled "
        "transitions; its actions are drawn as these say, or the commonest is taken. The expert does not look at the "
        f"screen: it solved {expert['solved']:.1%} of its {expert['episodes']:,} episodes, and of "
        f"{expert['levels']} levels {expert['levels_solved']:.1%} at the first attempt."
    )
    drawn = charts.bars(means, names, "share of levels solved", "own", ends, left=190)
    head = ["policy", "levels solved", "more than random"]
    return f"<h2>Cloned behaviour</h2><p>{escape(text)}</p>{drawn}{table(head, clone_rows(record))}"


def clone_page(record: dict) -> str:
    """The same as a page of its own."""
    run = record["config"]["run"]
    return document(f"Cloning with {run}", [f"<h1>{escape(run)}</h1>", clone_section(record)])


def comparison(records: dict[str, dict]) -> list[list[str]]:
    """Rows of texts: a headline's label, then its value in every record."""
    rows = []
    for row in headlines.ROWS:
        found = [headlines.find(record, row.path) for record in records.values()]
        if any(values is not None for values in found):
            rows.append(
                [row.label, *(headlines.show(values, row.digits, row.unit) for values in found)]
            )
    return rows


def compare_page(records: dict[str, dict]) -> str:
    """Several evaluations side by side: the table, then the curves of each."""
    facts = [
        ["data", *(f"{r['data']['hash'][:12]}, {r['data']['split']}" for r in records.values())],
        ["clips", *(str(r["data"]["clips"]) for r in records.values())],
        ["commit", *((r["machine"]["commit"] or "unknown")[:12] for r in records.values())],
    ]
    body = ["<h1>Worlds side by side</h1>", table(["", *records], comparison(records) + facts)]
    if (
        len({(r["data"]["hash"], r["data"]["split"], r["data"]["clips"]) for r in records.values()})
        > 1
    ):
        body.append(
            "<p>These worlds were not measured on the same clips: their numbers can hardly be compared.</p>"
        )
    for name, record in records.items():
        says = "".join(f"<li>{escape(sentence)}</li>" for sentence in headlines.verdicts(record))
        body.append(f"<h2>{escape(name)}</h2><ul class=verdicts>{says}</ul>")
        for prompt, scores in record["rollouts"].items():
            cost = [_line(way, scores["moving"]["delta"][way]) for way in ("random", "shuffled")]
            means = {
                way: scores["moving"]["psnr"][way]["mean"]
                for way in ("shuffled", "random", "copy_last")
            }
            psnr = [
                _line("own", scores["moving"]["psnr"]["own"]),
                *(charts.Line(*pair) for pair in means.items()),
            ]
            frames = f"{prompt} → {len(cost[0].mean)}, moving half"
            drawn = charts.lines(psnr, f"PSNR, {frames}", "dB") + charts.lines(
                cost, f"Δ_t, {frames}", "dB", zero=True
            )
            body.append(f"<div class=charts>{drawn}</div>")
    return document("Worlds side by side", body)
