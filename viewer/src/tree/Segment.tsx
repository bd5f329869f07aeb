/** One segment in the reading pane: who wrote it, its text with tinted tokens, calls and results, the decision after it. */
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Tokens } from "../api";
import { count, number, signed } from "../format";
import { Text, brief, visible } from "../text";
import type { Grown } from "./branches";
import { difference } from "./difference";
import { Outcomes } from "./Outcomes";
import { credit, name, shared, verdict, tone, ENDINGS } from "./said";
import { RawTokens, TokenText } from "./TokenText";
import { TINTS, type Tint } from "./tint";

/** Asks for the tokens of a segment; null where there are none to be had. */
export type AskTokens = ((node: string) => Promise<Tokens>) | null;

export function Segment({ at, tint, ask, selected, onSelect, children }: {
  at: Grown; tint: Tint; ask: AskTokens; selected: boolean; onSelect: (id: string) => void; children?: ComponentChildren;
}) {
  const node = at.data.node!;
  const box = useRef<HTMLElement>(null);
  const [raw, setRaw] = useState(false);
  const seen = useSeen(box);
  const wanted = raw || (seen && node.kind === "turn" && tint !== "plain");
  const { tokens, error } = useTokens(ask, node.id, wanted);
  return (
    <article ref={box} class={`segment ${node.kind}`} data-segment={node.id} aria-current={selected ? "true" : undefined}>
      <header>
        <h3><button type="button" class="plain" onClick={() => onSelect(node.id)}>{name(node)}</button></h3>
        <span class="soft">{shared(node)}</span>
        {node.kind === "turn" && <span class="soft">head {number(node.head)} nats, mean {number(node.entropy)}</span>}
        {node.kind === "turn" && node.reward !== null && <span class="soft">reward {signed(node.reward)}</span>}
        {node.kind === "turn" && <span class={node.credit && node.credit.mean > 0 ? "good" : node.credit && node.credit.mean < 0 ? "bad" : "soft"}>{credit(node)}</span>}
        {ask && <button type="button" class="small" aria-pressed={raw} onClick={() => setRaw(!raw)}>tokens</button>}
      </header>
      {error && <p class="bad">{error}</p>}
      {node.kind === "observation" ? <Observed node={node} /> : <Written text={node.text} tokens={node.kind === "turn" ? tokens : null} tint={tint} />}
      {node.kind === "turn" && node.calls.filter((call) => call.error).map((call, i) => (
        <p class="bad" key={i}>Malformed call of {brief(call.tool, 60)}: <Text text={call.error} limit={500} /></p>
      ))}
      {node.kind === "turn" && node.calls.filter((call) => call.mended).map((call, i) => (
        <p class="soft" key={i}>Call of {brief(call.tool, 60)} read despite a slip: {call.mended}</p>
      ))}
      {node.kind === "turn" && node.finish === "length" && <p class="bad">Cut at its length limit.</p>}
      {node.kind === "turn" && node.discarded.length > 0 && (
        <details>
          <summary>Results that the model never saw: {node.discarded.length}</summary>
          <Outcomes outcomes={node.discarded} />
        </details>
      )}
      {raw && (tokens ? <RawTokens tokens={tokens} /> : <p class="soft">Reading …</p>)}
      {at.data.leaf && (
        <p class="ends">
          {!at.data.leaf.unscored && <><b class={tone(at.data.leaf)}>{verdict(at.data.leaf)}</b> · </>}{ENDINGS[at.data.leaf.ending]}
          {at.data.leaf.answer !== null && <> · answer: <Text text={at.data.leaf.answer} limit={200} /></>}
        </p>
      )}
      {children}
    </article>
  );
}

function Written({ text, tokens, tint }: { text: string; tokens: Tokens | null; tint: Tint }) {
  if (tint === "plain" || !tokens) return <div><Text text={text} limit={6000} /></div>;
  if (!tokens.pieces) return <><p class="soft">The run keeps no tokenizer: its text cannot be divided into tokens.</p><Text text={text} limit={6000} /></>;
  const recorded = TINTS[tint].values(tokens);
  return (
    <>
      {!recorded && <p class="soft">No {TINTS[tint].title} is recorded for this turn.</p>}
      <TokenText tokens={tokens} tint={tint} />
    </>
  );
}

function Observed({ node }: { node: Extract<NonNullable<Grown["data"]["node"]>, { kind: "observation" }> }) {
  return (
    <>
      <Outcomes outcomes={node.outcomes} />
      {node.before && <Dropped before={node.before} node={node} />}
      <details>
        <summary class="soft">As the model read it</summary>
        <Text text={node.text} limit={6000} />
      </details>
      {node.decision && <p class="decision"><b>{node.decision.granted ? `Branched: ${node.decision.granted}` : node.decision.refused ? "Refused" : "No branch"}</b> · {node.decision.said}</p>}
    </>
  );
}

/** The context before a rewriting, with what is gone marked. */
function Dropped({ before, node }: { before: { tokens: number; text: string }; node: { tokens: number; text: string } }) {
  const [open, setOpen] = useState(false);
  const runs = useMemo(() => (open ? difference(before.text, node.text)[0] : []), [open, before, node]);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Context rewritten: {count(before.tokens, "token")} became {count(node.tokens, "token")}. What was dropped</summary>
      <div class="text">{runs.map((run, i) => (run.same ? <span key={i}>{visible(run.text)}</span> : <mark key={i}>{visible(run.text)}</mark>))}</div>
    </details>
  );
}

function useTokens(ask: AskTokens, node: string, wanted: boolean): { tokens: Tokens | null; error: string } {
  const [state, setState] = useState<{ tokens: Tokens | null; error: string }>({ tokens: null, error: "" });
  useEffect(() => {
    if (!wanted || !ask || state.tokens) return;
    let current = true;
    ask(node).then(
      (tokens) => current && setState({ tokens, error: "" }),
      (error: Error) => current && setState({ tokens: null, error: error.message }),
    );
    return () => void (current = false);
  }, [ask, node, wanted]);
  return state;
}

/** Whether it was ever near the window: tokens are read for what somebody may look at. */
function useSeen(box: { current: HTMLElement | null }): boolean {
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    if (seen) return;
    const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && setSeen(true), { rootMargin: "400px" });
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, [seen]);
  return seen;
}
