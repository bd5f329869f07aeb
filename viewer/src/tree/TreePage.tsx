/** One task's tree: drawn, searched, read branch by branch, compared, taken along as a picture. */
import { useMemo } from "preact/hooks";
import { Shown, useAnswer } from "../answer";
import type { PageProps } from "../pages";
import { go, link, type Query } from "../route";
import { source } from "../source";
import { Neighbours } from "./Neighbours";
import { TreeView } from "./TreeView";
import "./tree.css";

export function TreePage({ run, query }: PageProps) {
  const [step, task] = [Number(query["step"]), query["task"] ?? ""];
  const asked = query["step"] !== undefined && query["step"] !== "" && Number.isFinite(step) && task !== "";
  const answer = useAnswer(
    async () => {
      if (!asked) throw new Error("The address names no tree.");
      const tree = await source.tree(run.id, step, task);
      performance.clearMarks("tree-drawn");
      performance.mark("tree-arrived");
      return tree;
    },
    JSON.stringify([run.id, step, task]),
  );
  const ask = useMemo(() => {
    const kept = new Map<string, ReturnType<typeof source.tokens>>();
    return (node: string) => {
      if (!kept.has(node)) {
        const asked = source.tokens(run.id, step, task, node);
        asked.catch(() => kept.delete(node)); // so that it can be asked again
        kept.set(node, asked);
      }
      return kept.get(node)!;
    };
  }, [run.id, step, task]);
  const set = (changes: Query) => go(link(run.id, "tree", { step: query["step"], task, ...query, ...changes }), true);
  return (
    <>
      {asked ? <Neighbours run={run.id} step={step} task={task} from={query["from"] ?? ""} /> : <p class="crumbs"><a href={link(run.id, "trees")}>All trees</a></p>}
      <Shown answer={answer}>{(tree) => <TreeView key={`${tree.step} ${tree.task.id}`} tree={tree} ask={ask} query={query} set={set} />}</Shown>
    </>
  );
}
