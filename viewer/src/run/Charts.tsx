/** All figures of a run; with several runs, one metric a chart, a line a run. */
import { useEffect, useMemo, useState } from "preact/hooks";
import type { RunSummary } from "../api";
import { count } from "../format";
import { visible } from "../text";
import { Chart, type ChartProps, type Line } from "./Chart";
import { found, GROUPS, others, type Figure } from "./figures";
import { allSteps, column, type History } from "./metrics";

type Shared = Pick<ChartProps, "step" | "range" | "marks" | "onStep" | "onRange">;

interface ChartsProps {
  runs: RunSummary[]; // the first is the page's own
  history: History;
  window: number; // steps of a moving mean; 1: none
  shared: Shared;
}

export const runColour = (i: number) => `--s${i % 8}`;

const AT_ONCE = 6; // charts that are drawn with the page; the others follow when these are on the screen

export function Charts({ runs, history, window, shared }: ChartsProps) {
  const steps = useMemo(() => allSteps(history), [history]);
  const present = useMemo(() => measured(history, (value) => value !== null), [history]);
  const stirred = useMemo(() => measured(history, (value) => Boolean(value)), [history]);
  const { details, unknown } = useMemo(() => others(present), [present]);
  const [open, setOpen] = useState(false);
  const of = { runs, history, window, shared, steps, present };
  let drawn = 0;
  useDrawnMark(steps.length > 0);
  return (
    <>
      {GROUPS.map((group) => {
        const figures = group.figures.filter((figure) => found(figure.series, figure.quiet ? stirred : present).length > 0);
        if (!figures.length) return null;
        drawn += figures.length;
        return (
          <section key={group.title} class="group">
            <h2>{group.title}</h2>
            {group.note && <p class="soft">{group.note}</p>}
            <Cards figures={figures} of={of} soon={drawn <= AT_ONCE} />
          </section>
        );
      })}
      {unknown.length > 0 && (
        <section class="group">
          <h2>Others</h2>
          <p class="soft">What else this run measured, by name.</p>
          <Cards figures={unknown} of={of} />
        </section>
      )}
      {details.length > 0 && (
        <details class="group" onToggle={(event) => setOpen(event.currentTarget.open)}>
          <summary><h2>Details</h2> <span class="soft">{count(details.length, "further chart")}: counts of calls, leaves, decisions, lengths, updates</span></summary>
          {open && <Cards figures={details} of={of} />}
        </details>
      )}
    </>
  );
}

/** Marks the moment at which the first charts are on the screen: a reading of `performance` tells how long they took. */
function useDrawnMark(ready: boolean): void {
  useEffect(() => {
    if (!ready) return;
    let frame = requestAnimationFrame(() => {
      frame = requestAnimationFrame(() => performance.mark("charts-drawn"));
    });
    return () => cancelAnimationFrame(frame);
  }, [ready]);
}

type Of = ChartsProps & { steps: number[]; present: ReadonlySet<string> };

function Cards({ figures, of, soon = false }: { figures: Figure[]; of: Of; soon?: boolean }) {
  return <div class="charts">{figures.map((figure) => <FigureCard key={figure.title} figure={figure} soon={soon} {...of} />)}</div>;
}

/** Metrics of which some step of some run has a value that is as wanted. */
function measured(history: History, wanted: (value: number | null) => boolean): ReadonlySet<string> {
  return new Set([...history.values()].flatMap((m) => Object.entries(m.series).flatMap(([name, values]) => (values.some(wanted) ? [name] : []))));
}

const UNITS = { share: "", nats: "nats", tokens: "tokens", seconds: "s", versions: "versions" };

function FigureCard({ figure, soon, runs, history, window, shared, steps, present }: Of & { figure: Figure; soon: boolean }) {
  const all = found(figure.series, present);
  const [chosen, setChosen] = useState("");
  const several = runs.length > 1;
  const one = all.find(([metric]) => metric === chosen) ?? all[0]!;
  const lines = useMemo((): Line[] => {
    const missing = figure.counts ? 0 : null;
    if (several) return runs.map((run, i) => ({ label: run.id, values: column(history.get(run.id), one[0], steps, window, missing), colour: runColour(i) }));
    const own = history.get(runs[0]!.id);
    return all.map(([metric, label], i) => ({ label, values: column(own, metric, steps, window, missing), colour: `--s${i % 8}`, light: figure.light !== undefined && i >= figure.light }));
  }, [history, steps, window, figure, one[0], runs.map((run) => run.id).join()]);
  return (
    <figure class="card chart">
      <figcaption>
        <h3>{visible(figure.title)}</h3>
        {several && all.length > 1 ? (
          <select aria-label={`Which line of ${figure.title}`} value={one[0]} onChange={(event) => setChosen(event.currentTarget.value)}>
            {all.map(([metric, label]) => <option key={metric} value={metric}>{label}</option>)}
          </select>
        ) : (
          <span class="soft">{several && all.length === 1 && one[1] !== figure.title.toLowerCase() ? `${one[1]} ` : ""}{UNITS[figure.unit ?? "share"]}</span>
        )}
      </figcaption>
      <Chart label={figure.title} steps={steps} lines={lines} stack={figure.stack && !several} zero={figure.zero || figure.stack} soon={soon} share={figure.unit === "share"} {...shared} />
    </figure>
  );
}
