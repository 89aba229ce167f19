#!/usr/bin/env python3
"""terminal-svg.py [--title T] [--columns N] CAPTURE > docs/demo.svg

Draws a plain-text capture of a terminal as an SVG. Lines that begin with `$ ` are what was typed. Colours of the
capture (SGR 30-37, 90-97, 1, 2, 0) are kept; every other escape sequence is dropped. To make a capture with colour:

    script -qec 'target/release/assayd once demo-answers' /dev/null > capture.txt
"""

import argparse
import html
import re
import sys

SGR = re.compile(r"\x1b\[([0-9;]*)m")
OTHER = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")
COLOURS = dict(zip(range(30, 38), ["#484f58", "#ff7b72", "#7ee787", "#d29922", "#79c0ff", "#d2a8ff", "#56d4dd", "#c9d1d9"]))
COLOURS |= dict(zip(range(90, 98), ["#8b949e", "#ffa198", "#aff5b4", "#e3b341", "#a5d6ff", "#e2c5ff", "#b3f0ff", "#ffffff"]))
TEXT, TYPED, PROMPT, BACK, BAR = "#c9d1d9", "#ffffff", "#7ee787", "#0d1117", "#161b22"
SIZE, WIDTH, HEIGHT, PAD, TOP = 14, 8.43, 20, 16, 36


def runs(line):
    """(text, colour, bold) of a line."""
    if line.startswith("$ "):
        return [("$ ", PROMPT, True), (SGR.sub("", line[2:]), TYPED, True)]
    found, colour, bold, at = [], TEXT, False, 0
    for match in list(SGR.finditer(line)) + [None]:
        text = line[at : match.start() if match else len(line)]
        if text:
            found.append((text, colour, bold))
        if match:
            at = match.end()
            for code in [int(c or 0) for c in match.group(1).split(";")]:
                if code == 0:
                    colour, bold = TEXT, False
                elif code == 1:
                    bold = True
                elif code == 2:
                    colour = COLOURS[90]
                elif code == 39:
                    colour = TEXT
                else:
                    colour = COLOURS.get(code, colour)
    return found


def clip(line, columns):
    """At most `columns` visible characters; what was cut shows as an ellipsis."""
    shown, out, at = 0, "", 0
    while at < len(line):
        if match := SGR.match(line, at):
            out, at = out + match.group(0), match.end()
            continue
        if shown == columns - 1 and len(SGR.sub("", line[at:])) > 1:
            return out + "…"
        out, at, shown = out + line[at], at + 1, shown + 1
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--title", default="assayd")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("capture", nargs="?", type=argparse.FileType(encoding="utf-8", errors="replace"), default=sys.stdin)
    args = parser.parse_args()

    text = OTHER.sub("", args.capture.read().replace("\r\n", "\n"))
    # What a carriage return overwrote (a progress line) was not there in the end.
    lines = [clip(line.rsplit("\r", 1)[-1].expandtabs(8), args.columns) for line in text.strip("\n").split("\n")]
    columns = max([len(SGR.sub("", line)) for line in lines] + [40])
    width, height = round(columns * WIDTH + 2 * PAD), TOP + len(lines) * HEIGHT + PAD

    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">')
    print(f"<title>{html.escape(args.title)}</title>")
    print(f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/><path d="M0 28V8a8 8 0 0 1 8-8h{width - 16}a8 8 0 0 1 8 8v20z" fill="{BAR}"/>')
    for at, colour in enumerate(["#ff5f56", "#ffbd2e", "#27c93f"]):
        print(f'<circle cx="{18 + at * 18}" cy="14" r="5.5" fill="{colour}"/>')
    print('<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" '
          f'font-size="{SIZE}" xml:space="preserve" style="white-space:pre">')
    print(f'<text x="{width / 2}" y="19" fill="#8b949e" font-size="12" text-anchor="middle">{html.escape(args.title)}</text>')
    for row, line in enumerate(lines):
        spans, column = "", 0
        for part, colour, bold in runs(line):
            weight = ' font-weight="bold"' if bold else ""
            # Place and length are given, so that columns line up whatever font there is.
            spans += (f'<tspan x="{PAD + column * WIDTH:.1f}" textLength="{len(part) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs" '
                      f'fill="{colour}"{weight}>{html.escape(part)}</tspan>')
            column += len(part)
        if spans:
            print(f'<text y="{TOP + row * HEIGHT + SIZE}">{spans}</text>')
    print("</g></svg>")


if __name__ == "__main__":
    main()
