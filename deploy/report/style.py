"""How the page and its drawings look: colours and CSS. Consumes nothing.

Drawings name their colours as CSS variables, so that one drawing serves a light page, a dark page and the picture.
"""

from string import Template

LIGHT = {
    "paper": "#fbfaf6", "card": "#f3f1ea", "ink": "#1d1c1a", "muted": "#66635c", "rule": "#dedacf",
    "accent": "#1d5f91", "warm": "#a9480c", "sample": "#2a6a9b", "score": "#d79a2b", "learn": "#b4513a",
    "wait": "#b3aea2", "log": "#6d9362",
}  # fmt: skip
DARK = {
    "paper": "#161719", "card": "#1f2124", "ink": "#e9e7e2", "muted": "#a5a29b", "rule": "#36383c",
    "accent": "#78b7e6", "warm": "#ee9c5f", "sample": "#4f94c8", "score": "#d9a441", "learn": "#cf6a50",
    "wait": "#6e6c67", "log": "#7fa873",
}  # fmt: skip
FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, system-ui, sans-serif"

DRAWN = ("accent", "warm", "sample", "score", "learn", "wait", "log", "muted")  # the colours that fill shapes


def page_style() -> str:
    """The CSS of the page."""
    return Template(PAGE).substitute(fonts=FONTS, light=_variables(LIGHT), dark=_variables(DARK)) + CHART


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


CHART = """
.chart text { font-size: 13px; fill: var(--muted); }
.chart .strong { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .mark { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 4; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .band { fill: var(--accent); opacity: 0.15; }
.chart .hit { fill: transparent; }
""" + "".join(
    f".chart .f-{name} {{ fill: var(--{name}); }}\n.chart .s-{name} {{ stroke: var(--{name}); }}\n" for name in DRAWN
)

PAGE = """
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 $fonts; }
main { max-width: 1164px; margin: 0 auto; padding: 56px 32px 72px; }
h1, h2, .statement { text-wrap: balance; font-weight: 600; font-family: Charter, "Bitstream Charter",
  "Iowan Old Style", "Palatino Linotype", "Liberation Serif", Georgia, serif; }
h1 { font-size: 44px; line-height: 1.1; margin: 4px 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 25px; line-height: 1.2; margin: 0 0 18px; }
h3 { font-size: 17px; line-height: 1.3; margin: 0 0 12px; }
figure + h3, details + h3 { margin-top: 40px; }
section { margin-top: 56px; padding-top: 22px; border-top: 1px solid var(--rule); }
p { margin: 0 0 14px; max-width: 68ch; }
a, summary { color: var(--accent); }
.kicker { margin: 0; font-size: 14px; color: var(--muted); }
.statement { font-size: 23px; font-weight: 400; text-wrap: balance; line-height: 1.4; max-width: 46em; }
.state { border-left: 3px solid var(--warm); padding: 2px 0 2px 12px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 22px 20px;
  margin: 32px 0 0; }
.numbers dt, .numbers .note { font-size: 13px; line-height: 1.4; color: var(--muted); white-space: normal; }
.numbers dd { margin: 0; font-size: 25px; line-height: 1.3; white-space: nowrap; }
.numbers small { font-size: 15px; }
figure { margin: 0; }
figcaption { margin-top: 12px; font-size: 14px; line-height: 1.5; color: var(--muted); max-width: 76ch; }
figure + details, figure + .small { margin-top: 26px; }
.chart { display: block; width: 100%; height: auto; }
.phone { display: none; }
.small { display: grid; gap: 34px 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.pairs { display: grid; gap: 24px 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(2 * var(--tile) + 4px)), 1fr)); }
.pair div { display: flex; gap: 4px; }
.pair p { margin: 6px 0 0; font-size: 14px; line-height: 1.4; }
.value, .caption { color: var(--muted); }
.caption { font-style: italic; }
img { width: var(--tile); height: auto; max-width: 100%; border-radius: 3px; background: var(--card);
  image-rendering: var(--edges); }
.pair img { max-width: calc(50% - 2px); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
table, .numbers, .value { font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 22px; text-align: right; white-space: nowrap; font-weight: 400;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-size: 13px; }
th:first-child { text-align: left; padding-left: 0; }
.reasons tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
.film th, .film td { border: 0; padding: 0 4px 4px 0; text-align: left; }
.film tbody th { white-space: normal; width: 120px; min-width: 84px; line-height: 1.3; padding-right: 12px; }
.film img { display: block; width: var(--film); max-width: none; }
.shares { margin-top: 14px; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 8px; border-radius: 2px; }
pre { overflow-x: auto; margin: 0; padding: 16px 18px; background: var(--card); border-radius: 6px;
  font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.copy { user-select: all; -webkit-user-select: all; }
summary { cursor: pointer; padding: 4px 0; }
details > :last-child { margin-top: 8px; }
footer { margin-top: 56px; padding-top: 18px; border-top: 1px solid var(--rule); font-size: 14px;
  color: var(--muted); }
.dot { opacity: 0; }
.spot:hover .dot { opacity: 1; }
@media (max-width: 620px) {
  main { padding: 28px 18px 48px; }
  h1 { font-size: 34px; }
  .statement { font-size: 20px; }
  .numbers { grid-template-columns: repeat(2, 1fr); }
  .desk { display: none; }
  .phone { display: block; }
  .pairs { gap: 18px 12px;
    grid-template-columns: repeat(auto-fill, minmax(calc(2 * var(--small) + 4px), 1fr)); }
  .pair img { width: var(--small); }
  .film img { width: min(var(--small), 96px); }
  th, td { padding-left: 14px; }
}
@media print { figure, tr { break-inside: avoid; } }
"""
