/** A tree that is there: tools, drawing, facts, reading pane. Its state stands in `query`, so that every place has an address. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Tree } from "../api";
import { count } from "../format";
import type { Query } from "../route";
import { brief, Text } from "../text";
import { About } from "./About";
import { branch, grown, lineEnd, words, type Grown } from "./branches";
import { Canvas } from "./Canvas";
import { Compare } from "./Compare";
import { Decisions, rule, Whole } from "./Decisions";
import type { Colouring, Marks } from "./Drawing";
import { Key } from "./Key";
import { Reading } from "./Reading";
import type { AskTokens } from "./Segment";
import { isTint } from "./tint";
import { Tools } from "./Tools";

interface TreeViewProps {
  tree: Tree;
  ask: AskTokens;
  query: Query;
  set: (changes: Query) => void;
  within?: boolean; // of a page that says what was asked and has an address of its own
}

const COLOURINGS: Colouring[] = ["author", "entropy", "credit"];

export function TreeView({ tree, ask, query, set, within = false }: TreeViewProps) {
  const root = useMemo(() => grown(tree), [tree]);
  const byId = useMemo(() => new Map(root.descendants().map((at) => [at.id!, at])), [root]);
  const ends = useMemo(() => new Map(root.leaves().map((at) => [at.data.place, at])), [root]);
  const [zoom, setZoom] = useState(1);
  const [sought, setSought] = useState("");
  const page = useRef<HTMLDivElement>(null);
  const at = byId.get(query["node"] ?? "") ?? byId.get("-") ?? root;
  const end = lineEnd(at);
  const other = ends.get(query["vs"] ?? "") ?? null;
  const compared = other && other !== end ? other : null;
  const tint = isTint(query["tint"]) ? query["tint"] : "entropy";
  const colouring = COLOURINGS.find((known) => known === query["colour"]) ?? "author";
  const found = useFound(root, sought);
  const marks = useMarks(end, compared, found);

  const select = (id: string) => set({ node: id });
  const onCanvas = (id: string, compare: boolean) => {
    const chosen = byId.get(id);
    if (!chosen?.data.node) return;
    if (compare && lineEnd(chosen) !== end) set({ vs: lineEnd(chosen).data.place });
    else select(id);
  };
  const focusOn = (selector: string) => page.current?.querySelector<HTMLElement>(selector)?.focus();
  useSlash(() => focusOn("input[type=search]"));
  return (
    <div ref={page} class="tree-page">
      {!within && <Question tree={tree} />}
      <Misnamed {...{ query, byId, ends, set }} />
      <section class="card drawing">
        <Tools
          {...{ tree, root, colouring, zoom, found, at, within }} onZoom={setZoom} onColouring={(to) => set({ colour: to === "author" ? "" : to })}
          sought={sought} onSought={setSought} onSelect={select} onLeave={() => focusOn(".treebox")}
        />
        <Canvas {...{ tree, root, marks, colouring, zoom }} selected={at.id!} onSelect={onCanvas} onRead={() => focusOn("#reading, .compare button")} onZoom={setZoom} />
        <Key colouring={colouring} />
      </section>
      <div class="below">
        <section class="card facts-card" aria-label="The chosen segment">
          {at === root ? <Whole tree={tree} /> : <About at={at} tree={tree} />}
          <Decisions tree={tree} at={at.id!} onSelect={select} />
        </section>
        <section class="card read-card">
          {compared ? (
            <Compare a={end} b={compared} onClose={() => set({ vs: "" })} onSwap={() => set({ node: compared.data.node ? compared.id! : compared.parent!.id!, vs: end.data.place })} />
          ) : (
            <Reading {...{ at, tint, ask }} onTint={(to) => set({ tint: to === "entropy" ? "" : to })} onSelect={select} onCompare={(place) => set({ vs: place })} />
          )}
        </section>
      </div>
    </div>
  );
}

/** What the address names and this tree does not have: said, since something else is shown in its place. */
function Misnamed({ query, byId, ends, set }: { query: Query; byId: Map<string, Grown>; ends: Map<string, Grown>; set: (changes: Query) => void }) {
  const { node, vs } = query;
  if (node && !byId.has(node)) {
    return (
      <p class="notice error" role="alert">
        The address names the segment “{brief(node, 60)}”, which this tree does not have: the tree as a whole is shown.{" "}
        <button type="button" class="more" onClick={() => set({ node: "" })}>Forget it</button>
      </p>
    );
  }
  if (vs && !ends.has(vs)) {
    return (
      <p class="notice error" role="alert">
        The address compares with the branch “{brief(vs, 60)}”, which does not end in this tree; its leaves are {brief([...ends.keys()].join(", "), 400)}.{" "}
        <button type="button" class="more" onClick={() => set({ vs: "" })}>Forget it</button>
      </p>
    );
  }
  return null;
}

function Question({ tree }: { tree: Tree }) {
  const { task, leaves } = tree;
  return (
    <header class="question">
      <h2><Text text={task.question || task.id} limit={400} /></h2>
      <p class="soft">
        {task.answers.length > 0 && <>gold: <b><Text text={task.answers.slice(0, 5).join(" | ")} limit={200} /></b> · </>}
        {task.family && <><Text text={task.family} limit={80} /> · </>}
        <Text text={task.id} limit={120} /> · step {tree.step} · {count(leaves.length, "leaf", "leaves")} of {tree.growth.leaves} · rule {rule(tree)}
      </p>
      {tree.failures.map((failure, i) => <p class="notice error" key={i}><Text text={failure} limit={600} /></p>)}
    </header>
  );
}

/** Segments that hold the words; null: nothing is sought. */
function useFound(root: Grown, sought: string): Grown[] | null {
  const texts = useMemo(() => ({ read: null as [Grown, string][] | null }), [root]);
  return useMemo(() => {
    const wanted = sought.trim().toLowerCase();
    if (!wanted) return null;
    texts.read ??= root.descendants().filter((at) => at.data.node).map((at) => [at, words(at.data)]);
    const hits = new Set(texts.read.filter(([, text]) => text.includes(wanted)).map(([at]) => at));
    const inOrder: Grown[] = [];
    root.eachBefore((at) => void (hits.has(at) && inOrder.push(at)));
    return inOrder;
  }, [root, sought]);
}

function useMarks(end: Grown, compared: Grown | null, found: Grown[] | null): Marks {
  return useMemo(() => {
    const ids = (ats: Grown[]) => new Set(ats.map((at) => at.id!));
    const path = ids(branch(end));
    return { path, other: new Set([...ids(compared ? branch(compared) : [])].filter((id) => !path.has(id))), found: ids(found ?? []) };
  }, [end, compared, found]);
}

/** "/" anywhere but in a field. */
function useSlash(act: () => void): void {
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || (event.target as HTMLElement).closest("input, select, textarea")) return;
      event.preventDefault();
      act();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}
