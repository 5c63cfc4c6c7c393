#!/usr/bin/env python3
"""report.py DIR MACHINE COMMIT QUICK: what scripts/bench has measured (`rows` and `grown` here), as a table on standard output, and
in DIR as bench.json, bench.md, ratios.svg and growth.svg. What was not measured now is taken from DIR's bench.json, if that is of the
same machine: so the parts can be run one by one."""
import datetime
import json
import math
import os
import re
import subprocess
import sys

out, machine, commit, quick = sys.argv[1:]
here = os.path.dirname(os.path.abspath(__file__))


def lines(name):
    return [line.rstrip("\n").split("\t") for line in open(name)] if os.path.exists(name) else []


def number(text):
    found = re.search(r"[\d.]+", text)
    return float(found[0]) if found else None


def met(bak, ratio, goal):
    """Whether a goal is met: `>= N` and plain numbers are of the ratio where there is one, but for sizes and rates, which say so."""
    bound = number(goal)
    if bound is None:
        return None
    of = bak if ratio is None or "MB" in goal or bound > 20 else ratio
    return of >= bound if goal.startswith(">=") else of <= bound


def gnuplot(name, script):
    setup = f'set terminal svg size 1100,{script.pop(0)} dynamic background "white" font "sans,13"\nset output "{out}/{name}.svg"\n'
    subprocess.run(["gnuplot"], input=setup + "\n".join(script), text=True, check=True)


def quoted(text):
    return '"' + text.replace('"', "'").replace("_", "\\\\_") + '"'


date = datetime.date.today().isoformat()
rows = []
for what, bak, bare, ratio, goal in lines("rows"):
    rows.append({"what": what, "bak": float(bak), "bare": number(bare), "ratio": number(ratio), "goal": goal.strip("-") or None,
                 "met": met(float(bak), number(ratio), goal), "date": date, "commit": commit})
grown = [{"what": name, "size": int(size), "cpu_s": float(cpu), "wall_s": float(wall), "mib": float(mib), "date": date, "commit": commit}
         for size, name, cpu, wall, mib in lines("grown")]
try:
    before = json.load(open(f"{out}/bench.json"))
except (OSError, ValueError):
    before = {}
if (before.get("machine"), before.get("quick")) == (machine, quick != "no"):
    now = {row["what"] for row in rows}
    rows = [row for row in before["rows"] if row["what"] not in now] + rows
    grown = grown or before["growth"]
with open(f"{out}/bench.json", "w") as file:
    json.dump({"machine": machine, "quick": quick != "no", "rows": rows, "growth": grown}, file, indent=1)
    file.write("\n")

def figure(value):
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


shown = [(row["what"], figure(row["bak"]), figure(row["bare"]), "" if row["ratio"] is None else f"{row['ratio']:.2f}",
          row["goal"] or "", {True: "yes", False: "NO", None: ""}[row["met"]]) for row in rows]
names = list(dict.fromkeys(row["what"] for row in grown))
sizes = sorted({row["size"] for row in grown})


def cell(name, size, key):
    return next((row[key] for row in grown if (row["what"], row["size"]) == (name, size)), None)


def exponent(name, key):
    """How it grows over the last decade: 1 is linear."""
    last = [cell(name, size, key) for size in sizes[-2:]]
    return "" if len(last) < 2 or None in last or 0 in last else f"{math.log(last[1] / last[0], sizes[-1] / sizes[-2]):.2f}"


growth = [(name, *(f"{cell(name, size, 'cpu_s'):.3f}" for size in sizes), exponent(name, "cpu_s"),
           *(f"{cell(name, size, 'mib'):.0f}" for size in sizes)) for name in names]
heads = ["what", "bak", "bare", "ratio", "goal", "met"]
growth_heads = ["what", *(f"s at {size:,}" for size in sizes), "exponent", *(f"MiB at {size:,}" for size in sizes)]


def table(heads, rows):
    widths = [max(len(str(row[at])) for row in [heads, *rows]) for at in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(str(word).ljust(width) if at == 0 else str(word).rjust(width) for at, (word, width) in enumerate(zip(row, widths))))


def markdown(heads, rows):
    return "\n".join(["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1), *("| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows)])


if shown:
    table(heads, shown)
if growth:
    print()
    table(growth_heads, growth)

ratios = [row for row in rows if row["ratio"] is not None and row["ratio"] > 0]
if ratios:
    with open("ratios.data", "w") as file:
        for at, row in enumerate(reversed(ratios)):
            print(at, row["ratio"], file=file)
    labels = ", ".join(f"{quoted(row['what'])} {at}" for at, row in enumerate(reversed(ratios)))
    gnuplot("ratios", [80 + 22 * len(ratios), 'set title "bak : the bare tool or peer (what is better is in the table)"',
                       f"set ytics ({labels}) nomirror", f"set yrange [-0.6:{len(ratios) - 0.4}]", "set logscale x 2", "set grid x", "set key off",
                       "set style fill solid 0.6", "set arrow from 1, graph 0 to 1, graph 1 nohead lw 2",
                       'plot "ratios.data" using (1):1:(1):2:($1-0.35):($1+0.35) with boxxyerror lc rgb "#4477aa"'])
if grown:
    def curves(key):
        blocks, plots = [], []
        for at, name in enumerate(names):
            points = [(size, cell(name, size, key)) for size in sizes]
            blocks.append(f"$d{at} << E\n" + "\n".join(f"{size} {max(value, 0.001)}" for size, value in points if value is not None) + "\nE")
            plots.append(f'$d{at} using 1:2 with linespoints title {quoted(name)} lw 2 pt {at + 1}')
        return "\n".join(blocks), "plot " + ", ".join(plots)
    script = [1000, "set multiplot layout 2,1", "set logscale xy", "set grid", "set key outside right", 'set xlabel "dumps, guests or archives"']
    for key, title in (("cpu_s", "seconds of CPU"), ("mib", "MiB, the most of one process")):
        blocks, plot = curves(key)
        script += [blocks, f'set ylabel "{title}"', plot]
    gnuplot("growth", script)

with open(f"{out}/bench.md", "w") as file:
    print("# Benchmarks\n", file=file)
    print("Made by `scripts/bench --publish`; `scripts/bench --quick` gives an impression in three minutes. Each figure is beside the bare tool or a "
          "peer in the same run. The ratio is bak's figure to theirs, or the other way round where it says x.\n", file=file)
    runs = ", ".join(sorted({f"{row.get('date', date)} at {row.get('commit', commit)}" for row in rows + grown}))
    print(f"Measured {runs}; {machine}.\n" if quick == "no" else f"A quick run ({date}, {commit}, {machine}): a tenth of the sizes "
          "that are named, once each. Not to be relied on.\n", file=file)
    print(markdown(heads, shown), file=file)
    print("\n![ratios](scripts/bench.d/ratios.svg)\n\n## Growth\n", file=file)
    print("CPU seconds and memory against the size of the store (dumps), of the database (guests) or of the directory (archives). The exponent is that "
          "of the last decade: 1 is linear, less is better than linear.\n", file=file)
    print(markdown(growth_heads, growth), file=file)
    print("\n![growth](scripts/bench.d/growth.svg)\n", file=file)
    print(open(f"{here}/notes.md").read().rstrip("\n"), file=file)
