/**
 * Lines over steps: hover shows every line's value, drag zooms, a click chooses the step. All charts of a page move together.
 * Knows uPlot; refuses to know metrics.
 */
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { axisTexts, number } from "../format";
import { visible } from "../text";
import { colour, useTheme } from "../theme";

export interface Line {
  label: string;
  values: (number | null)[];
  colour: string; // a CSS variable: "--s0"
  light?: boolean;
}

export interface ChartProps {
  label: string; // what the chart shows, for those who do not see it
  steps: number[];
  lines: Line[];
  stack?: boolean;
  zero?: boolean;
  share?: boolean; // values in [0, 1], shown as per cent
  soon?: boolean; // to be drawn with the page, not after it
  step: number | null; // the chosen one
  range: [number, number] | null; // of steps; null: all
  marks: number[]; // steps at which something happened
  onStep: (step: number) => void;
  onRange: (range: [number, number] | null) => void;
}

const HEIGHT = 190;

export function Chart(props: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const now = useRef(props);
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [hover, setHover] = useState<number | null>(null);
  const theme = useTheme();
  now.current = props;
  const shown = props.lines.filter((line) => !hidden.has(line.label));
  const ready = useTurn(Boolean(props.soon));
  const shape = JSON.stringify([ready, theme, props.stack, props.zero, props.share, shown.map((line) => [line.label, line.colour, line.light])]);

  useEffect(() => {
    if (!ready) return;
    const element = box.current!;
    const made = new uPlot(options(element, shown, now, setHover), drawn(props, shown), element);
    plot.current = made;
    applyRange(made, now.current);
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => {
    plot.current?.setData(drawn(props, shown), false);
    if (plot.current) applyRange(plot.current, props);
  }, [props.steps, props.lines, hidden, props.range?.[0], props.range?.[1]]);
  useEffect(() => plot.current?.redraw(false), [props.step, props.marks]);

  const at = hover ?? (props.step === null ? props.steps.length - 1 : props.steps.indexOf(props.step));
  const toggle = (label: string) => setHidden((before) => (before.has(label) ? new Set([...before].filter((l) => l !== label)) : new Set([...before, label])));
  return (
    <div>
      <div class="plot" ref={box} role="img" aria-label={described(props)} />
      <ul class="legend">
        {props.lines.map((line) => (
          <li key={line.label}>
            <button type="button" aria-pressed={!hidden.has(line.label)} onClick={() => toggle(line.label)} disabled={props.lines.length === 1}>
              <i style={{ background: `var(${line.colour})`, height: line.light ? "2px" : "4px" }} /> {visible(line.label)} <b>{shownValue(line.values[at], props.share)}</b>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** True at once, or when the page has nothing better to do: so charts out of sight keep nobody waiting. */
function useTurn(soon: boolean): boolean {
  const [ready, setReady] = useState(soon);
  useEffect(() => {
    if (ready) return;
    if (!window.requestIdleCallback) { // Safari
      const timer = setTimeout(() => setReady(true), 50);
      return () => clearTimeout(timer);
    }
    const turn = requestIdleCallback(() => setReady(true), { timeout: 2000 });
    return () => cancelIdleCallback(turn);
  }, [ready]);
  return ready;
}

const shownValue = (value: number | null | undefined, share?: boolean) => (share && value != null ? `${number(value * 100, 1)} %` : number(value));

function described({ label, steps, lines, share }: ChartProps): string {
  const ends = lines.map(({ label: name, values }) => {
    const measured = values.filter((value) => value !== null);
    return `${name} from ${shownValue(measured[0], share)} to ${shownValue(measured.at(-1), share)}`;
  });
  return `${label}, steps ${steps[0] ?? 0} to ${steps.at(-1) ?? 0}: ${ends.join("; ")}`;
}

/** uPlot's columns. Stacked lines are sums of all above them in the list's order, the whole first, so that each area covers the next. */
function drawn({ steps, stack }: ChartProps, lines: Line[]): uPlot.AlignedData {
  if (!stack) return [steps, ...lines.map((line) => line.values)];
  const sums: number[] = steps.map(() => 0);
  const stacked = lines.map((line) => line.values.map((value, i) => (sums[i] = sums[i]! + (value ?? 0))));
  return [steps, ...stacked.reverse()];
}

function applyRange(plot: uPlot, { range, steps }: ChartProps): void {
  const [low, high] = range ?? [steps[0] ?? 0, steps.at(-1) ?? 1];
  plot.batch(() => {
    plot.setScale("x", low === high ? { min: low - 1, max: high + 1 } : { min: low, max: high });
  });
}

type Now = { current: ChartProps };

function options(box: HTMLElement, shown: Line[], now: Now, setHover: (index: number | null) => void): uPlot.Options {
  const { stack, zero, share } = now.current;
  const lines = stack ? [...shown].reverse() : shown;
  const few = now.current.steps.length < 60;
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    width: box.clientWidth || 300,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: "steps" },
      y: false,
      drag: { x: true, y: false, setScale: false },
      points: { size: 6 },
    },
    scales: { x: { time: false }, y: { range: (_, low, high) => bounds(low, high, Boolean(stack || zero), Boolean(share)) } },
    axes: [
      { ...axis, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
      { ...axis, size: 52, values: (_, ticks) => (share ? ticks.map((tick) => `${number(tick * 100, 1)} %`) : axisTexts(ticks)) },
    ],
    series: [
      {},
      ...lines.map((line): uPlot.Series => ({
        stroke: colour(line.colour),
        width: line.light ? 1 : 2,
        ...(stack ? { fill: colour(line.colour) } : {}),
        points: { show: few && !line.light && !stack, size: 4 },
        spanGaps: true,
      })),
    ],
    hooks: {
      setCursor: [(plot) => setHover(plot.cursor.idx ?? null)],
      setSelect: [(plot) => choose(plot, now.current)],
      draw: [(plot) => drawMarks(plot, now.current)],
      ready: [
        (plot) => {
          plot.over.addEventListener("click", () => {
            const step = plot.cursor.idx == null ? undefined : now.current.steps[plot.cursor.idx];
            if (step !== undefined && plot.select.width < 5) now.current.onStep(step);
          });
          plot.over.addEventListener("dblclick", () => now.current.onRange(null));
        },
      ],
    },
  };
}

/** Some room above and below; a constant gets a band around it. Shares stay within 0 and 1. */
function bounds(low: number | null, high: number | null, zero: boolean, share: boolean): [number, number] {
  if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const from = zero ? Math.min(0, low) : low;
  const room = (high - from) * 0.06 || Math.abs(high) * 0.1 || 1;
  const [bottom, top] = [zero && from === 0 ? 0 : from - room, high + room];
  return share ? [low >= 0 ? Math.max(0, bottom) : bottom, high <= 1 ? Math.min(1.005, top) : top] : [bottom, top];
}

/** A drag chose a range of steps; the selection's box goes away, the range is drawn by all charts. */
function choose(plot: uPlot, { onRange }: ChartProps): void {
  const { left, width } = plot.select;
  if (width < 5) return;
  const [low, high] = [Math.ceil(plot.posToVal(left, "x")), Math.floor(plot.posToVal(left + width, "x"))];
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  if (high > low) onRange([low, high]);
}

function drawMarks(plot: uPlot, { step, marks }: ChartProps): void {
  const { ctx, bbox } = plot;
  const line = (at: number, stroke: string, dash: number[]) => {
    const x = Math.round(plot.valToPos(at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.save();
    ctx.strokeStyle = stroke;
    ctx.setLineDash(dash);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  };
  for (const mark of marks) line(mark, colour("--warn"), [2, 4]);
  if (step !== null) line(step, colour("--ink"), []);
}
