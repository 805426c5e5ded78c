"""The HTML that reports are made of: a page that needs nothing else, no script, no request, pictures in it."""

import base64
from html import escape

from genie_fn.data import video
from genie_fn.evaluation.report.pictures import Picture

WAYS = {
    "own": "the clip's own actions",
    "shuffled": "another clip's actions",
    "random": "random actions",
    "one_go": "own actions, all frames in one go",
    "true_past": "own actions, each frame from the real past",
    "copy_last": "copy of the last real frame",
}
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2330; --soft: #5b6678; --edge: #d9dee7; --card: #f5f7fa;
  --own: #1f62d0; --shuffled: #c2570c; --random: #b3205f; --one_go: #12805c; --true_past: #7a4ccf; --copy_last: #6b7280;
  --heat: 31, 98, 208; }
@media (prefers-color-scheme: dark) { :root { --back: #12161d; --text: #e4e8ef; --soft: #9aa6b8; --edge: #2c3442;
  --card: #1a202a; --own: #6ea8ff; --shuffled: #f59a4e; --random: #f272a8; --one_go: #4cc99c; --true_past: #b394ff;
  --copy_last: #a3adbb; --heat: 110, 168, 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft, small, figcaption { color: var(--soft); }
.verdicts { padding: .8rem 1rem .8rem 2rem; margin: 1rem 0; background: var(--card);
  border-left: 4px solid var(--own); }
.tiles, .clips { display: flex; flex-wrap: wrap; gap: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }
.tiles div { flex: 1 1 9rem; padding: .7rem .9rem; background: var(--card); border-radius: .4rem; }
.tiles b { display: block; font-size: 1.35rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--edge); }
td, th { white-space: nowrap; }
th:first-child, td:first-child, td.left, th.left { text-align: left; white-space: normal; min-width: 9rem; }
th { font-weight: 600; }
figure { margin: 0; }
.chart { max-width: 31rem; min-width: 0; }
.clips figure { flex: 0 0 9.5rem; }
.clips img { width: 100%; image-rendering: pixelated; display: block; }
.clips figcaption { font-size: .78rem; line-height: 1.3; }
.strip { width: 100%; max-width: 52rem; height: auto; image-rendering: pixelated; display: block; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--edge); } .zero { stroke: var(--text); }
.line { fill: none; stroke-width: 2; } .band { opacity: .16; }
.line.copy_last { stroke-dasharray: 6 4; } .line.true_past { stroke-dasharray: 2 3; }
.line.one_go { stroke-dasharray: 8 3 2 3; }
.key { display: inline-block; margin-right: 1rem; font-size: .9rem; }
.key i { display: inline-block; width: 1.5rem; border-top: 3px solid; vertical-align: middle; margin-right: .35rem; }
.key.copy_last i, .key.one_go i { border-top-style: dashed; } .key.true_past i { border-top-style: dotted; }
pre { overflow-x: auto; padding: .8rem; background: var(--card); font-size: .8rem; }
"""
for way in WAYS:
    STYLE += f".line.{way} {{ stroke: var(--{way}); }} .band.{way}, .bar.{way} {{ fill: var(--{way}); }}\n"
    STYLE += f".key.{way} i {{ color: var(--{way}); }}\n"


def document(title: str, body: list[str]) -> str:
    """A whole page, readable on a phone, light or dark as the reader's system is."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def table(head: list[str], rows: list[list[str]], left: tuple[int, ...] = ()) -> str:
    """An HTML table of texts; the columns in `left`, as the first, are aligned to the left."""

    def line(kind: str, cells: list[str]) -> str:
        made = (
            f"<{kind}{' class=left' if i in left else ''}>{escape(c)}</{kind}>"
            for i, c in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    lines = "".join(line("td", row) for row in rows)
    return f"<div class=wide><table><thead>{line('th', head)}</thead><tbody>{lines}</tbody></table></div>"


def image(picture: Picture, css: str = "", fps: int = 5) -> str:
    """An <img> with its content in it."""
    moving = len(picture.frames) > 1
    content = video.gif_bytes(picture.frames, fps) if moving else video.png_bytes(picture.frames[0])
    source = f"data:image/{'gif' if moving else 'png'};base64,{base64.b64encode(content).decode()}"
    return f'<img class="{css}" alt="{escape(picture.caption)}" src="{source}">'


def clips(pictures: list[Picture]) -> str:
    shown = "".join(
        f"<figure>{image(p)}<figcaption>{escape(p.caption)}</figcaption></figure>" for p in pictures
    )
    return f"<div class=clips>{shown}</div>"
