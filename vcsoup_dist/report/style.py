"""The report's style sheet: light and dark, on screen and paper, in the reader's own fonts."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --ink: #22262c; --soft: #636a75; --line: #dfe2e7; --tint: #f4f5f7;
  --accent: #1f62b0; --bar: #9dbde2; --chosen: #eef4fb; }
@media (prefers-color-scheme: dark) { :root {
  --page: #141414; --ink: #e3e5e8; --soft: #9aa1ab; --line: #33373d; --tint: #1e2023;
  --accent: #7fb2ef; --bar: #3f6594; --chosen: #1a2533; }
  /* Plots are drawn on white: turn lightness round and keep the hues. White becomes --page. */
  figure img, .mark { filter: invert(.92) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Helvetica Neue", sans-serif; -webkit-text-size-adjust: 100%; }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 3.5rem 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--line);
  font-size: 1.35rem; line-height: 1.25; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .5rem; font-size: 1rem; }
h4 { margin: 0 0 .5rem; font-size: .82rem; color: var(--soft); font-weight: 600; }
p { max-width: 44rem; margin: .6rem 0; }
section > p { color: var(--soft); font-size: .93rem; }
.kind { margin: 0 0 .3rem; color: var(--soft); font-size: .93rem; }
.lede { margin: 1.6rem 0; font-size: 1.22rem; line-height: 1.5; max-width: 48rem; }
.notes { max-width: 46rem; margin: 1.4rem 0; padding: .2rem 1.1rem; border-left: 3px solid #d9a21f;
  background: var(--tint); font-size: .95rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr));
  gap: .9rem 2rem; margin: 1.8rem 0 0; font-size: .93rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.8rem 0 0; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.2rem 0; }
img { display: block; width: 100%; max-width: 720px; height: auto; }
figcaption { max-width: 44rem; margin-top: .6rem; color: var(--soft); font-size: .87rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: .5rem 2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .32rem 1.1rem .32rem 0; text-align: left; vertical-align: baseline;
  white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; font-size: .83rem;
  border-bottom: 1.5px solid var(--ink); }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
td small { color: var(--soft); font-size: .87em; }
.soups .group { padding-top: 1.3rem; font-weight: 600; text-align: left; }
.soups tbody:first-of-type .group { padding-top: .6rem; }
.soups td.weight { color: var(--soft); }
.soups .chosen > * { background: var(--chosen); }
.soups td:first-child { padding-left: .5rem; }
.soups td.mean { min-width: 4.6rem; padding-right: .6rem; }
.soups td.interval { padding-right: 1.6rem; text-align: right; }
.soups td.spread { padding-right: 1.6rem; text-align: right; }
.soups td.interval:has(+ .spread) { padding-right: .6rem; }
.soups thead .value { color: var(--ink); font-weight: 600; }
.soups td.badges { padding-right: 2rem; }
.bar { display: block; height: 3px; margin-top: 2px; background: var(--tint); }
.bar > span { display: block; height: 3px; background: var(--bar); }
.badge { padding: .05rem .45rem; border: 1px solid var(--line); border-radius: 1rem;
  color: var(--soft); font-size: .75rem; }
.badge.front { border-color: var(--accent); color: var(--accent); }
.badge.balanced { border-color: var(--accent); background: var(--accent); color: var(--page); }
blockquote { margin: 2rem 0 1rem; padding: .1rem 0 .1rem 1rem; border-left: 3px solid var(--line);
  max-width: 46rem; font-weight: 500; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  gap: 1rem; }
article { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 6px;
  display: flex; flex-direction: column; }
.answer { flex: 1; max-height: 24rem; overflow: auto; font-size: .9rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.rewards { margin: .7rem 0 0; color: var(--soft); font-size: .8rem;
  font-variant-numeric: tabular-nums; }
pre, code { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { padding: 1rem 1.2rem; border-radius: 6px; background: var(--tint); white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print {
  :root { --page: #fff; --ink: #000; --soft: #444; --line: #ccc; --tint: #f4f5f7;
    --accent: #1f62b0; --bar: #9dbde2; --chosen: #eef4fb; }
  figure img, .mark { filter: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, h4, blockquote, .group { break-after: avoid; }
  figure, blockquote, tr { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  .answer { max-height: none; overflow: visible; } }
"""
