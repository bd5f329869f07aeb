/** Whether a higher rise marks a better place to branch: the share of siblings that ended better than their probe, by rise. */
import type { Against, Calibration as Bucket, Entropy, Payoff } from "../api";
import { count, number, percent } from "../format";

const [W, H, LEFT, BOTTOM, TOP] = [620, 250, 46, 34, 10];
const ACROSS = W - LEFT - 8;
const DOWN = H - BOTTOM - TOP;

/** Buckets hold about equally many forks, so they stand side by side at equal width. */
export function Calibration({ buckets, payoffs }: { buckets: Bucket[]; payoffs: Payoff[] }) {
  const measured = buckets.filter((bucket) => bucket.share !== null);
  if (!measured.length) return <p class="soft">No sibling was granted, so there is nothing to hold against a probe.</p>;
  const all = measured.reduce((sum, { n, better, worse }) => ({ n: sum.n + n, better: sum.better + better, worse: sum.worse + worse }), { n: 0, better: 0, worse: 0 });
  const most = Math.min(1, Math.max(...measured.flatMap((b) => [b.share_high ?? 0, b.worse / b.n])) * 1.1);
  const wide = ACROSS / measured.length;
  const y = (share: number) => TOP + DOWN * (1 - share / most);
  const said = `In all ${count(all.n, "sibling")}: ${percent(all.better / all.n)} ended better than their probe, ${percent(all.worse / all.n)} worse.`;
  return (
    <>
      <p>{said}</p>
      <div class="wide" tabIndex={0} role="region" aria-label="Chart of the share that ended better">
        <svg viewBox={`0 0 ${W} ${H}`} class="svg" role="img" aria-label={`Share of siblings that ended better than their probe, by rise. ${said}`}>
          <Grid most={most} y={y} />
          {measured.map((b, i) => {
            const x = LEFT + wide * (i + 0.5);
            return (
              <g key={i}>
                <title>{`rise ${number(b.low)} to ${number(b.high)}: ${b.better} better, ${b.equal} equal, ${b.worse} worse of ${b.n}`}</title>
                <rect x={x - wide * 0.32} width={wide * 0.3} y={y(b.better / b.n)} height={y(0) - y(b.better / b.n)} class="better" />
                <rect x={x + wide * 0.02} width={wide * 0.3} y={y(b.worse / b.n)} height={y(0) - y(b.worse / b.n)} class="worse" />
                <path d={`M${x - wide * 0.17},${y(b.share_low ?? 0)}V${y(b.share_high ?? 0)}`} class="whisker" />
                <text x={x} y={H - BOTTOM + 14} text-anchor="middle">{b.low.toFixed(2)}</text>
                <text x={x} y={H - BOTTOM + 28} text-anchor="middle" class="faint">n {b.n}</text>
              </g>
            );
          })}
        </svg>
      </div>
      <p class="chart-key"><i class="better" /> better than its probe, with 95 % interval <i class="worse" /> worse <span class="soft">(below: the rise at which a bucket begins, in nats)</span></p>
      <AsTable title="As a table" label="Calibration as a table" first="rise, nats" rows={measured} name={(b) => `${b.low.toFixed(3)} to ${b.high.toFixed(3)}`} />
      {payoffs.length > 0 && <AsTable title="Over training" label="What branching paid off over training" first="steps" rows={payoffs} name={(p) => `${p.first} to ${p.last}`} />}
    </>
  );
}

function Grid({ most, y }: { most: number; y: (share: number) => number }) {
  const step = most > 0.6 ? 0.2 : most > 0.25 ? 0.1 : 0.05;
  const ticks = Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
  return (
    <>
      {ticks.map((tick) => (
        <g key={tick}>
          <path d={`M${LEFT},${y(tick)}H${W - 8}`} class="gridline" />
          <text x={LEFT - 6} y={y(tick) + 4} text-anchor="end">{percent(tick, 0)}</text>
        </g>
      ))}
    </>
  );
}

const COLUMNS = ["siblings", "better", "equal", "worse", "share better", "95 %"];
const figures = (row: Against) => [row.n, row.better, row.equal, row.worse, percent(row.share), `${percent(row.share_low)} to ${percent(row.share_high)}`];

function AsTable<Row extends Against>(props: { title: string; label: string; first: string; rows: Row[]; name: (row: Row) => string }) {
  return (
    <details>
      <summary>{props.title}</summary>
      <div class="wide" tabIndex={0} role="region" aria-label={props.label}>
        <table class="cards" role="table">
          <thead role="rowgroup"><tr role="row">{[props.first, ...COLUMNS].map((label, i) => <th scope="col" role="columnheader" class={i ? "num" : undefined} key={label}>{label}</th>)}</tr></thead>
          <tbody role="rowgroup">
            {props.rows.map((row) => (
              <tr key={props.name(row)} role="row">
                <th scope="row" role="rowheader" class="nowrap">{props.name(row)}</th>
                {figures(row).map((figure, i) => <td role="cell" class="num" data-label={COLUMNS[i]} key={COLUMNS[i]}>{figure}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

/** How often each rise came up, and what the rule made of it. */
export function Rises({ rises }: { rises: Entropy["rises"] }) {
  if (!rises.length) return <p class="soft">No tip's rise was measured.</p>;
  const most = Math.max(1, ...rises.map((bin) => bin.tips));
  const [low, high] = [rises[0]!.low, rises.at(-1)!.high];
  const x = (rise: number) => LEFT + (ACROSS * (rise - low)) / (high - low || 1);
  const y = (n: number) => TOP + DOWN * (1 - n / most);
  const bar = (from: number, to: number, n: number, name: string) => <rect class={name} x={x(from)} width={Math.max(0, x(to) - x(from) - 1)} y={y(n)} height={y(0) - y(n)} />;
  const total = (of: "tips" | "wanted" | "granted") => rises.reduce((sum, bin) => sum + bin[of], 0);
  const [tips, wanted, granted] = [total("tips"), total("wanted"), total("granted")].map((n) => n.toLocaleString("en"));
  const said = `${tips} tips; the rule wanted to branch at ${wanted} and got a sibling at ${granted}.`;
  const ticks = rounded(low, high);
  return (
    <>
      <p>{said}</p>
      <div class="wide" tabIndex={0} role="region" aria-label="Chart of rises">
        <svg viewBox={`0 0 ${W} ${H}`} class="svg" role="img" aria-label={`How often each rise came up. ${said}`}>
          <text x={LEFT - 6} y={TOP + 8} text-anchor="end">{most}</text>
          <text x={LEFT - 6} y={y(0)} text-anchor="end">0</text>
          {rises.map((bin, i) => (
            <g key={bin.low}>
              <title>{`rise ${number(bin.low)}${i === 0 ? " or less" : ""} to ${number(bin.high)}${i === rises.length - 1 ? " or more" : ""}: ${bin.tips} tips, ${bin.wanted} wanted to branch, ${bin.granted} did`}</title>
              {bar(bin.low, bin.high, bin.tips, "tips")}
              {bar(bin.low, bin.high, bin.wanted, "wanted")}
              {bar(bin.low, bin.high, bin.granted, "granted")}
            </g>
          ))}
          <path d={`M${LEFT},${y(0)}H${W - 8}`} class="gridline" />
          {low < 0 && high > 0 && <path d={`M${x(0)},${TOP}V${y(0)}`} class="zero" />}
          {ticks.map((tick) => <text key={tick} x={x(tick)} y={H - BOTTOM + 16} text-anchor="middle">{number(tick, 2)}</text>)}
        </svg>
      </div>
      <p class="chart-key"><i class="tips" /> tips <i class="wanted" /> wanted to branch <i class="granted" /> branched <span class="soft">(across: rise in nats)</span></p>
    </>
  );
}

/** Round numbers from `low` to `high`, about six. */
function rounded(low: number, high: number): number[] {
  const rough = (high - low || 1) / 7;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((n) => n * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}
