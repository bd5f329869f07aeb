/** Where this tree stands among those that were chosen in the table, and the ways to the one before and after. */
import { useAnswer } from "../answer";
import { link, type Query } from "../route";
import { source } from "../source";
import { packed, unpacked, wanted } from "../trees/query";

const MOST = 1000; // rows that an answer may have

/** `from`: the table's query as the address carries it; "": all trees of the step. */
export function Neighbours({ run, step, task, from }: { run: string; step: number; task: string; from: string }) {
  const chosen: Query = from ? unpacked(from) : { step: String(step) };
  const answer = useAnswer(() => source.trees(run, { ...wanted(chosen, MOST), offset: 0 }), `${run} ${packed(chosen)}`);
  const rows = answer.value?.rows ?? [];
  const at = rows.findIndex((row) => row.step === step && row.task === task);
  const to = (i: number) => link(run, "tree", { step: rows[i]!.step, task: rows[i]!.task, from });
  return (
    <nav class="crumbs" aria-label="Trees">
      <a href={link(run, "trees", chosen)}>{from ? "The chosen trees" : `All trees of step ${step}`}</a>
      {at >= 0 && rows.length > 1 && (
        <span class="neighbours">
          {at > 0 ? <a href={to(at - 1)} rel="prev">← previous</a> : <span class="soft">← previous</span>}
          <span class="soft">{(at + 1).toLocaleString("en")} of {answer.value!.total.toLocaleString("en")}</span>
          {at < rows.length - 1 ? <a href={to(at + 1)} rel="next">next →</a> : <span class="soft">next →</span>}
        </span>
      )}
    </nav>
  );
}
