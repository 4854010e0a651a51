"""The style sheet of the page."""

STYLE = """
:root { --paper: #fff; --ink: #1c2127; --quiet: #5b646e; --line: #e1e4e8; --shade: #f6f8fa; --good: #00724f;
  --open: #9a4a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #e6e9ec; --quiet: #98a2ad; --line: #2b3037;
  --shade: #1c2026; --good: #2bc197; --open: #f2a65a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
header p { margin: .25rem 0 0; color: var(--quiet); }
.state { font-weight: 600; margin-right: .5rem; }
.state.good { color: var(--good); }
.state.open { color: var(--open); }
.note { border-left: 3px solid var(--open); padding: .1rem .75rem; color: var(--quiet); }
.headline { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 1rem 1.5rem;
  margin: 1.75rem 0; padding: 1.1rem 1.25rem; background: var(--shade); border-radius: .5rem; }
.headline dt { color: var(--quiet); font-size: .85rem; }
.headline dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.headline small { font-size: .8rem; font-weight: 400; color: var(--quiet); }
figure { margin: 0; }
picture img { width: 100%; height: auto; display: block; margin-top: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .35rem 1.25rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--quiet); font-size: .85rem; }
.number { text-align: right; white-space: nowrap; }
pre { margin: 0; padding: .9rem 1rem; background: var(--shade); border-radius: .5rem; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.sample { margin-bottom: 1rem; }
figcaption { color: var(--quiet); font-size: .85rem; margin-bottom: .25rem; }
summary { cursor: pointer; color: var(--quiet); margin-bottom: .5rem; }
@media print { main { max-width: none; padding: 0; } }
"""
