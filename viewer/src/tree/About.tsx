/** What is known about one segment, in a few lines: the same beside the pointer and in the page. */
import type { Decision, Leaf, Node, Tree } from "../api";
import { count, number, signed } from "../format";
import { brief } from "../text";
import type { Grown } from "./branches";
import { paidOff } from "./Decisions";
import { credit, ENDINGS, facts, name, shared, tone, verdict } from "./said";

export function About({ at, tree }: { at: Grown; tree: Tree }) {
  const { node, leaf } = at.data;
  if (!node) return null;
  const before = at.parent?.data.node;
  const madeBy = node.kind === "turn" && node.role !== "root" && before?.kind === "observation" ? before.decision : null;
  return (
    <dl class="about">
      <dt class={`author ${node.kind}`}>{name(node)}</dt>
      <dd>{shared(node)}</dd>
      {node.kind === "turn" && <TurnFacts node={node} head={tree.growth.head} />}
      {node.kind === "observation" && <Results node={node} />}
      {node.kind === "observation" && node.decision && <Decided made={node.decision} />}
      {madeBy && <Row what={node.kind === "turn" && node.role === "sibling" ? "Given because" : "Decision before it"}>{madeBy.said}</Row>}
      {leaf && <End leaf={leaf} />}
    </dl>
  );
}

function Row({ what, children }: { what: string; children: preact.ComponentChildren }) {
  return (
    <>
      <dt>{what}</dt>
      <dd>{children}</dd>
    </>
  );
}

function TurnFacts({ node, head }: { node: Extract<Node, { kind: "turn" }>; head: number }) {
  return (
    <>
      <Row what="Entropy">
        {number(node.head)} nats over its {node.tokens > head ? `first ${head} tokens, ${number(node.entropy)} over all` : count(node.tokens, "token")}
      </Row>
      {node.reward !== null && <Row what="Reward">{signed(node.reward)} for this turn</Row>}
      <Row what="Credit">{credit(node)}</Row>
      {node.finish === "length" && <Row what="Finish"><span class="bad">cut at its length limit</span></Row>}
      {node.calls.filter((call) => call.error).map((call) => <Row what="Malformed call" key={call.error}><span class="bad">{brief(`${call.tool}: ${call.error}`)}</span></Row>)}
      {node.calls.filter((call) => call.mended).map((call) => <Row what="Mended call" key={call.mended}>{brief(`${call.tool}: ${call.mended}`)}</Row>)}
      {node.discarded.length > 0 && <Row what="Discarded">{count(node.discarded.length, "result")} that the model never saw</Row>}
    </>
  );
}

function Results({ node }: { node: Extract<Node, { kind: "observation" }> }) {
  return (
    <>
      {node.outcomes.map((outcome, i) => (
        <Row what={brief(outcome.tool, 30)} key={i}>
          <span class={outcome.status === "ok" ? "good" : "bad"}>{outcome.status}</span>, {facts(outcome).join(", ")}
        </Row>
      ))}
    </>
  );
}

const KNOWN = new Set(["head", "baseline", "rise", "rise_low", "rise_high", "head_low", "head_high"]);

function Decided({ made }: { made: Decision }) {
  const terms = Object.entries(made.terms).filter(([term]) => !KNOWN.has(term));
  const bounded = made.rise_low !== null && made.rise_high !== null && made.rise_low !== made.rise_high;
  return (
    <>
      <Row what="Rise">
        {signed(made.rise)} nats: head {number(made.head)} after {number(made.baseline)}
        {bounded && `, between ${signed(made.rise_low)} and ${signed(made.rise_high)}`}
      </Row>
      {terms.length > 0 && <Row what="Rule">{terms.map(([term, value]) => `${term} ${number(value, 4)}`).join(", ")}</Row>}
      <Row what="Decision">
        {made.said}
        {made.waited && "; waited for the other tips"}
        {made.flips && "; would differ between the bounds"}
      </Row>
      {made.siblings.length > 0 && (
        <Row what="Paid off">
          probe's line {number(made.probe)}, {made.siblings.length > 1 ? "siblings'" : "sibling's"} {made.siblings.map((reward) => number(reward)).join(", ")}: <Verdict made={made} />
        </Row>
      )}
    </>
  );
}

function Verdict({ made }: { made: Decision }) {
  switch (paidOff(made)) {
    case 1: return <span class="good">branching helped</span>;
    case -1: return <span class="bad">the probe was better</span>;
    case 0: return <>no difference</>;
    default: return <>not known</>;
  }
}

function End({ leaf }: { leaf: Leaf }) {
  const parts = Object.entries(leaf.parts).map(([part, value]) => `${part} ${number(value)}`);
  return (
    <>
      <Row what="Leaf">
        <span class={tone(leaf)}>{verdict(leaf)}</span>
        {parts.length > 0 && ` (${parts.join(", ")})`}, {ENDINGS[leaf.ending]}
      </Row>
      {Object.entries(leaf.reasons).map(([name, text]) => <Row what={name}>{brief(text, 300)}</Row>)}
      {leaf.answer !== null && <Row what="Answer">{brief(leaf.answer, 200)}</Row>}
      <Row what="Advantage">{signed(leaf.advantage)}</Row>
      <Row what="Branch">
        {count(leaf.tokens, "token")}, {count(leaf.calls, "call")}
        {leaf.probe_line && "; as without branching"}
      </Row>
    </>
  );
}
