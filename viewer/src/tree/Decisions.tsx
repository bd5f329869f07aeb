/** The tree as a whole in a few lines, and every decision in it: where the rule branched, why, and what that paid off. */
import type { Decision, Node, Tree } from "../api";
import { count, NONE, number, percent, signed } from "../format";
import { brief } from "../text";

type Observation = Extract<Node, { kind: "observation" }>;
type Decided = Observation & { decision: Decision };

/** 1: some sibling ended better than the probe; -1: none did and some ended worse; null: nothing to hold against each other. */
export function paidOff(made: Decision): -1 | 0 | 1 | null {
  const known = made.siblings.filter((reward): reward is number => reward !== null);
  if (made.probe === null || !known.length) return null;
  if (Math.max(...known) > made.probe) return 1;
  return known.some((reward) => reward < made.probe!) ? -1 : 0;
}

const decided = (tree: Tree) => tree.nodes.filter((node): node is Decided => node.kind === "observation" && node.decision !== null);

/** "paper (alpha 0.5, tau 0.5)" */
export function rule(tree: Tree): string {
  const { rule: name, ...terms } = tree.rule;
  const shown = Object.entries(terms).map(([key, value]) => `${key} ${typeof value === "number" ? number(value) : typeof value === "object" ? JSON.stringify(value) : String(value)}`);
  return brief(`${String(name ?? "unknown")}${shown.length ? ` (${shown.join(", ")})` : ""}`, 160);
}

export function Whole({ tree }: { tree: Tree }) {
  const made = decided(tree).map((node) => node.decision);
  const [granted, refused] = [made.reduce((sum, { granted }) => sum + granted, 0), made.reduce((sum, { refused }) => sum + refused, 0)];
  const rewards = tree.leaves.flatMap((leaf) => (leaf.reward === null ? [] : [leaf.reward]));
  const unscored = tree.leaves.some((leaf) => leaf.unscored);
  const right = tree.leaves.filter((leaf) => (leaf.accuracy ?? 0) >= 1).length;
  const written = tree.nodes.reduce((sum, node) => sum + node.tokens, 0);
  const flat = tree.leaves.reduce((sum, leaf) => sum + leaf.tokens, 0);
  const judged = made.map(paidOff);
  const times = (as: number) => judged.filter((one) => one === as).length;
  return (
    <dl class="about whole">
      <dt class="author">this tree</dt>
      <dd>{count(tree.leaves.length, "leaf", "leaves")} of {tree.growth.leaves}, from {tree.growth.roots === null ? "roots chosen by pilot" : count(tree.growth.roots, "root")}</dd>
      {!unscored && (
        <>
          <dt>Reward</dt>
          <dd>{rewards.length ? `${number(rewards.reduce((a, b) => a + b) / rewards.length, 2)} on average, ${right} of ${tree.leaves.length} right` : NONE}</dd>
        </>
      )}
      <dt>Rule</dt>
      <dd>{rule(tree)}</dd>
      <dt>Branches</dt>
      <dd>{granted} given at {count(made.filter((one) => one.granted).length, "fork")} of {count(made.length, "tip")}{refused > 0 && `, ${refused} refused`}</dd>
      {granted > 0 && !unscored && (
        <>
          <dt>Paid off</dt>
          <dd><span class="good">helped {times(1)}</span>, <span class="bad">hurt {times(-1)}</span>, no difference {times(0)}</dd>
        </>
      )}
      <dt>Tokens</dt>
      <dd>{number(written)}; without sharing {number(flat)}{flat > 0 && `: ${percent(1 - written / flat, 0)} saved`}</dd>
    </dl>
  );
}

const SIGNS = { "1": ["good", "▲"], "-1": ["bad", "▼"], "0": ["soft", "="] } as const;

export function Decisions({ tree, at, onSelect }: { tree: Tree; at: string; onSelect: (id: string) => void }) {
  const nodes = decided(tree);
  if (!nodes.length) return null;
  return (
    <details class="decisions" open>
      <summary><h3>Decisions</h3> <span class="soft">{count(nodes.length, "tip")}</span></summary>
      <table>
        <thead>
          <tr>
            <th scope="col">after</th>
            <th scope="col" class="num" title="head entropy now less that of the branch's first turn, nats">rise</th>
            <th scope="col" class="num" title="siblings given; of how many the rule wanted">branches</th>
            <th scope="col" title="reward of the siblings' lines against the probe's">paid off</th>
          </tr>
        </thead>
        <tbody>
          {nodes.map((node) => (
            <tr key={node.id} class={node.id === at ? "chosen" : undefined} title={node.decision.said}>
              <th scope="row"><button type="button" class="plain" onClick={() => onSelect(node.id)}>{node.place}</button></th>
              <td class="num">{signed(node.decision.rise)}</td>
              <td class="num">{given(node.decision)}</td>
              <td><PaidOff made={node.decision} /></td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

function given({ granted, wanted }: Decision) {
  if (!wanted && !granted) return <span class="soft">{NONE}</span>;
  return granted < wanted ? <span class={granted ? undefined : "warn"}>{granted} of {wanted}</span> : <b>{granted}</b>;
}

function PaidOff({ made }: { made: Decision }) {
  const judged = paidOff(made);
  if (judged === null) return <span class="soft">{NONE}</span>;
  const [tone, sign] = SIGNS[`${judged}`];
  return <span class={tone}>{sign} {made.siblings.map((reward) => number(reward, 2)).join(", ")} against {number(made.probe, 2)}</span>;
}
