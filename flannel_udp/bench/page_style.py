"""The style of a report: one sheet, light and dark, no font and nothing else from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --faint: #57606a; --rule: #d0d7de; --band: #f6f8fa; --link: #0550ae;
  --ours: #7fb0e6; --theirs: #d3d8de; --better: #116329; --worse: #a40e26;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --rule: #3d444d; --band: #161b22; --link: #79b8ff;
    --ours: #2f6db3; --theirs: #3d444d; --better: #56d364; --worse: #ff8f86;
  }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; background: var(--paper); padding: .5rem 1rem; }
.skip:focus { left: 1rem; top: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--rule); padding-bottom: .25rem; font-size: 1.3rem; }
h3 { margin: 1.75rem 0 .25rem; font-size: 1.05rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .25rem 0; font-weight: 600; }
code { font: .9em ui-monospace, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .75rem 0; min-width: 70%; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; }
tbody th[scope=row] { font-weight: 400; white-space: normal; min-width: 9rem; }
thead th, tbody th[scope=rowgroup] { background: var(--band); }
td strong.good { color: var(--better); } td strong.bad { color: var(--worse); }
figure { margin: .5rem 0; overflow-x: auto; } svg { width: 100%; min-width: 38rem; height: auto; display: block; }
svg text { fill: var(--ink); font-size: 13px; } svg text.tick { fill: var(--faint); font-size: 12px; }
svg .ours, svg .theirs { fill: var(--ours); stroke: var(--faint); } svg .theirs { fill: var(--theirs); }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--faint); }
svg .quartiles { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg .sample { fill: var(--ink); fill-opacity: .55; }
svg .one { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .interval { stroke: var(--faint); stroke-width: 2; fill: none; }
svg .better { fill: var(--better); } svg .worse { fill: var(--worse); }
svg .same { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); color: var(--faint); }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } .skip, nav { display: none; } }
"""
