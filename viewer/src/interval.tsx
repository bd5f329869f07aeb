/** A share with its 95 % interval: as figures, and as a bar that can be compared with those above and below it. */
import type { Estimate } from "./api";
import { NONE, percent } from "./format";

export function Interval({ estimate }: { estimate: Estimate | null }) {
  if (!estimate) return <>{NONE}</>;
  const { mean, low, high } = estimate;
  const at = (value: number) => `${Math.min(1, Math.max(0, value)) * 100}%`;
  return (
    <span class="interval">
      <span class="bar" aria-hidden="true">
        {low !== null && high !== null && <i class="span" style={{ left: at(low), width: `${(Math.min(1, high) - Math.max(0, low)) * 100}%` }} />}
        <i class="mean" style={{ left: at(mean) }} />
      </span>
      <b>{percent(mean)}</b> {low !== null && high !== null && <span class="soft">[{(low * 100).toFixed(1)}, {(high * 100).toFixed(1)}]</span>}
    </span>
  );
}
