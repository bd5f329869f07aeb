/** Mean entropy by position around a tool's result, with 95 % bands; hover shows values and how many tokens stand behind them. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { EntropyCurve } from "../api";
import { axisTexts, count, number } from "../format";
import { colour, useTheme } from "../theme";

export interface Drawn {
  label: string;
  curve: EntropyCurve;
  colour: string; // a CSS variable
  dashed?: boolean;
}

const HEIGHT = 300;
const GAP = -0.5; // where the result stands: no line crosses it

export function Curves({ label, lines }: { label: string; lines: Drawn[] }) {
  const box = useRef<HTMLDivElement>(null);
  const theme = useTheme();
  const [at, setAt] = useState<number | null>(null);
  const x = useMemo(() => [...new Set([GAP, ...lines.flatMap((line) => line.curve.positions)])].sort((a, b) => a - b), [lines]);
  useEffect(() => {
    const element = box.current!;
    const plot = new uPlot(options(element.clientWidth, lines, x, setAt), data(lines, x), element);
    const observer = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [theme, lines, x]);
  const position = at === null || x[at] === GAP ? null : x[at]!;
  return (
    <>
      <div class="plot tall" ref={box} role="img" aria-label={`${label}: ${lines.map((line) => `${line.label}, ${described(line.curve)}`).join("; ")}`} />
      <p class="soft at">{position === null ? "Position 0 is the first token after the result; negative ones are the end of the turn that called the tool." : `Position ${position}`}</p>
      <ul class="legend readings">
        {lines.map((line) => {
          const i = position === null ? -1 : line.curve.positions.indexOf(position);
          return (
            <li key={line.label}>
              <i style={{ background: `var(${line.colour})` }} class={line.dashed ? "dashed" : undefined} /> {line.label}
              {i >= 0 && <> <b>{number(line.curve.mean[i])}</b> <span class="soft">[{number(line.curve.low[i])}, {number(line.curve.high[i])}], {count(line.curve.n[i]!, "token")}</span></>}
            </li>
          );
        })}
      </ul>
    </>
  );
}

function described({ positions, mean }: EntropyCurve): string {
  const i = positions.indexOf(0);
  const best = mean.indexOf(Math.max(...mean));
  return `${number(mean[i])} nats at position 0, highest ${number(mean[best])} at ${positions[best]}`;
}

/** For each line three columns: low, mean, high. */
function data(lines: Drawn[], x: number[]): uPlot.AlignedData {
  const columns = lines.flatMap(({ curve }) => {
    const at = new Map(curve.positions.map((position, i) => [position, i]));
    // GAP itself is null, so that the line is broken there.
    return [curve.low, curve.mean, curve.high].map((values) => x.map((position) => (at.has(position) ? values[at.get(position)!]! : null)));
  });
  return [x, ...columns];
}

function options(width: number, lines: Drawn[], x: number[], setAt: (index: number | null) => void): uPlot.Options {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const highest = Math.max(0, ...lines.flatMap((line) => line.curve.high)) * 1.05 || 1;
  return {
    width: width || 300,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: true, y: false }, points: { size: 6 } },
    scales: { x: { time: false, range: (_, low, high) => [low - 0.3, high + 0.3] }, y: { range: [0, highest] } },
    axes: [
      { ...axis, size: 26, incrs: [1, 2, 5, 10] },
      { ...axis, size: 44, values: (_, ticks) => axisTexts(ticks) },
    ],
    series: [
      {},
      ...lines.flatMap((line): uPlot.Series[] => {
        const stroke = colour(line.colour);
        const edge = { stroke: "transparent", points: { show: false } };
        return [edge, { stroke, width: 2, points: { show: false }, ...(line.dashed ? { dash: [6, 4] } : {}) }, edge];
      }),
    ],
    bands: lines.map((line, i) => ({ series: [i * 3 + 3, i * 3 + 1], fill: `${colour(line.colour)}22` })),
    hooks: { setCursor: [(plot) => setAt(plot.cursor.idx ?? null)], draw: [x[0]! < 0 ? drawResult : () => undefined] },
  };
}

function drawResult(plot: uPlot): void {
  const { ctx, bbox } = plot;
  const at = Math.round(plot.valToPos(GAP, "x", true));
  if (at < bbox.left || at > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--soft");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([2, 3]);
  ctx.beginPath();
  ctx.moveTo(at, bbox.top);
  ctx.lineTo(at, bbox.top + bbox.height);
  ctx.stroke();
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  ctx.fillText("tool result ", at, bbox.top + 12 * devicePixelRatio);
  ctx.restore();
}
