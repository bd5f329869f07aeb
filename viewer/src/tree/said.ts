/** Short words for what a tree holds: one place for them, so that bar, hover, list and picture say the same. */
import type { Json, Leaf, Node, Outcome } from "../api";
import { count, number, signed } from "../format";
import { brief } from "../text";

/** On one line, and whole characters only, so that it can stand in an SVG file. */
export const line = (text: string, limit = 60) => brief(text, limit).replace(/\p{Surrogate}/gu, "\ufffd");

export const ENDINGS: { [ending in Leaf["ending"]]: string } = {
  finished: "finished",
  turn_length: "turn cut at its limit",
  branch_length: "branch at its limit",
  call_limit: "no calls left",
  engine_failed: "engine failed",
  tool_failed: "tool failed",
  replay_miss: "no recorded result",
  environment_failed: "environment failed",
  context_changed: "agent changed its context",
};

export const name = (node: Node) =>
  node.kind === "prompt" ? "prompt" : node.kind === "turn" ? `${node.role} turn ${node.place}` : `result after ${node.place}`;

/** "✓ 1" where the answer was right, "✗ 0" where not, "· 0.4" where that is not known. */
export function verdict(leaf: Leaf): string {
  if (leaf.unscored) return "";
  const sign = leaf.accuracy === null ? "·" : leaf.accuracy >= 1 ? "✓" : leaf.accuracy > 0 ? "◐" : "✗";
  return leaf.reward === null ? "no reward" : `${sign} ${number(leaf.reward, 2)}`;
}

/** A right answer that was not rewarded (its form was wrong) is no good news. */
export function tone({ accuracy, reward }: Leaf): "soft" | "good" | "warn" | "bad" {
  if (accuracy === null || reward === null) return "soft";
  if (accuracy >= 1 && reward > 0) return "good";
  return accuracy > 0 ? "warn" : "bad";
}

export function leafLabel(leaf: Leaf, limit: number): string {
  const end = leaf.ending === "finished" ? "" : ENDINGS[leaf.ending];
  return line([verdict(leaf), end, leaf.answer?.slice(0, 400)].filter(Boolean).join(" · ") || "finished", limit);
}

/** Letters that the tree's longest leaf label takes, at most `limit`. */
export const longest = (leaves: Leaf[], limit: number) => Math.max(6, ...leaves.map((leaf) => leafLabel(leaf, limit).length));

/** What stands over a bar. */
export function barLabel(node: Node, limit: number): string {
  if (node.kind === "prompt") return limit > 16 ? count(node.tokens, "token") : line("prompt", limit);
  if (node.kind === "observation") return line(node.outcomes.map((o) => (o.status === "ok" ? o.text : `${o.status}: ${o.text}`).slice(0, 4 * limit)).join(" | ") || node.text, limit);
  const call = node.calls[0];
  if (call) return line(`${call.tool}: ${argument(call.arguments)}`, limit);
  return line(node.text.slice(0, 4 * limit).replace(/<\/?[a-z_]+>/g, " "), limit);
}

/** The only argument's value, or all of them. */
export function argument(values: { [name: string]: Json }): string {
  const given = Object.values(values);
  return given.length === 1 && typeof given[0] === "string" ? given[0].slice(0, 400) : JSON.stringify(values).slice(0, 400);
}

export function seconds(s: number): string {
  return s < 0.001 ? "under 1 ms" : s < 1 ? `${Math.round(s * 1000)} ms` : `${number(s, 1)} s`;
}

export function facts(o: Outcome): string[] {
  const found = [seconds(o.seconds)];
  if (o.cached) found.push("from the cache");
  if (o.shared) found.push("shared with an equal call");
  if (o.attempts > 1) found.push(`${o.attempts} attempts`);
  if (o.cost) found.push(`cost ${number(o.cost)}`);
  if (o.cut) found.push("the model saw only its beginning");
  return found;
}

export function credit(node: Node): string {
  if (node.kind !== "turn") return "";
  if (!node.credit) return "not trained";
  const { low, high, mean } = node.credit;
  const arrow = (value: number) => `${value > 0 ? "▲" : value < 0 ? "▼" : "="} ${signed(value)}`;
  return low === high ? arrow(mean) : `${arrow(mean)} on average: ${arrow(high)} to ${arrow(low)} over ${count(node.leaves, "leaf", "leaves")}`;
}

export const shared = (node: Node) => `${count(node.tokens, "token")}${node.leaves > 1 ? `, shared by ${node.leaves} leaves` : ""}`;
