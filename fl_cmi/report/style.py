"""The look of the HTML page."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4;
  --card: #f6f8fa;  --student: #0969da; --ensemble: #1a7f37; --average: #bc4c00; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e6edf3; --soft: #9da7b1; --line: #30363d; --card: #1c2126;
    --student: #58a6ff; --ensemble: #4ac26b; --average: #f0883e; --bad: #ff7b72; }
  img.chart { filter: invert(0.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem;
  padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
code, pre { font: .86em/1.5 ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { margin: 1rem 0 0; padding: .7rem .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
  gap: .75rem; margin: 1.5rem 0 0; }
.card { padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.card b { display: block; font-size: 1.6rem; line-height: 1.3; font-weight: 650; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: .85rem; color: var(--soft); line-height: 1.35; }
.card span:first-child { color: var(--ink); font-weight: 600; }
.student b { color: var(--student); }
.ensemble b { color: var(--ensemble); } .average b { color: var(--average); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem .38rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .85rem; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; padding-right: 1.2rem; }
tr.total td { font-weight: 600; }
td.bar { width: 45%; vertical-align: middle; }
td.bar i { display: block; height: .6rem; border-radius: 2px; background: var(--student); min-width: 1px; }
table.plain td:first-child { white-space: nowrap; color: var(--soft); padding-right: 1.5rem; }
table.plain td:last-child { width: 100%; overflow-wrap: anywhere; }
table.config td { padding-top: .2rem; padding-bottom: .2rem; }
.cards + p { margin-top: .8rem; }
td.whole { overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; }
img.pictures { padding: .25rem; background: #fff; border-radius: 6px; }
figure { margin: 1rem 0; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
ul { margin: .5rem 0; padding-left: 1.25rem; }
.bad { color: var(--bad); }
details { margin-top: 2.75rem; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 700; margin-bottom: .6rem; }
@media (max-width: 36rem) {
  body { padding: 1.25rem .9rem 3rem; }
  .cards { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .card { padding: .6rem .75rem; } .card b { font-size: 1.3rem; }
  .bar { display: none; }
  img.chart { max-width: none; width: 40rem; }
  table.config td { display: block; border: 0; padding: 0; }
  table.config td:last-child { padding-bottom: .5rem; }
}
@media print { body { max-width: none; } details { display: block; } h2, figure { break-inside: avoid; } }
"""
