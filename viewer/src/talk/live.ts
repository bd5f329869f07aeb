/**
 * A tree while it grows, from the steps that were told so far, in the form in which a recorded tree comes.
 * What no step tells (entropies, decisions) is null; lengths are estimates until the whole tree is there.
 */
import type { Decision, Leaf, Node, ObservationNode, Tree, TurnNode } from "../api";
import type { Step } from "./ask";

const LETTERS = 4; // of a token, about

export class LiveTree {
  private turns = new Map<string, TurnNode>();
  private attempts = new Map<string, number>();
  private results = new Map<string, ObservationNode>();
  private ends = new Map<string, Leaf>();
  private branches = new Map<string, number>();

  constructor(private readonly question: string, private readonly samples: number) {}

  add(step: Step): void {
    const { place } = step;
    switch (step.type) {
      case "text": {
        const again = step.attempt !== (this.attempts.get(place) ?? 0);
        this.attempts.set(place, step.attempt);
        const before = again ? "" : (this.turns.get(place)?.text ?? "");
        this.turns.set(place, turn(place, before + step.text));
        break;
      }
      case "turn":
        this.turns.set(place, { ...turn(place, step.text), calls: step.calls.map((call) => ({ ...call, tool: call.name, mended: "" })) });
        break;
      case "results":
        this.results.set(place, {
          ...base(`o${place}`, place, `t${place}`, step.text), kind: "observation", before: null, decision: null,
          outcomes: step.results.map((result, i) => ({
            ...result, arguments: this.turns.get(place)?.calls[i]?.arguments ?? {}, cached: false, shared: false, fault: "", attempts: 1, cost: 0,
          })),
        });
        break;
      case "branch":
        this.branches.set(place, step.siblings);
        break;
      case "end":
        this.ends.set(place, leaf(place, step.ending, this.turns.has(place)));
    }
  }

  /** Everything so far. */
  tree(): Tree {
    const nodes: Node[] = [{ ...base("-", "", null, this.question), place: "", kind: "prompt" }];
    for (const place of [...this.turns.keys()].sort(byPlace)) {
      if (place.includes(".") && !this.results.has(parent(place))) continue;
      nodes.push(this.turns.get(place)!);
      const seen = this.results.get(place);
      if (seen) nodes.push({ ...seen, decision: granted(this.branches.get(place)) });
    }
    const known = new Set(nodes.map((node) => node.id));
    return {
      step: 0,
      task: { id: "chat", question: this.question, answers: [], family: "" },
      rule: { rule: "told with the whole tree" },
      growth: { leaves: this.samples, roots: [...this.turns.keys()].filter((place) => !place.includes(".")).length, head: 1, seed: 0 },
      nodes,
      leaves: [...this.ends.values()].filter((end) => known.has(end.node)).sort((a, b) => byPlace(a.place, b.place)),
      tokenizer: false,
      failures: [],
    };
  }
}

const parent = (place: string) => place.split(".").slice(0, -1).join(".");

const base = (id: string, place: string, above: string | null, text: string) => ({
  id, place, parent: above, text, depth: place.split(".").length - 1, tokens: Math.max(1, Math.ceil(text.length / LETTERS)), leaves: 1,
});

function turn(place: string, text: string): TurnNode {
  const above = place.includes(".") ? `o${parent(place)}` : "-";
  return { ...base(`t${place}`, place, above, text), kind: "turn", role: above === "-" ? "root" : place.endsWith(".0") ? "probe" : "sibling", finish: "stop", head: null, entropy: null, calls: [], credit: null, reward: null, discarded: [] };
}

function leaf(place: string, ending: string, written: boolean): Leaf {
  const node = written ? `t${place}` : place.includes(".") ? `o${parent(place)}` : "-";
  return { place, node, ending: ending as Leaf["ending"], reward: null, accuracy: null, parts: {}, reasons: {}, answer: null, advantage: null, tokens: 0, calls: 0, probe_line: false, unscored: true };
}

function granted(siblings: number | undefined): Decision | null {
  if (!siblings) return null;
  const unknown = { rise: null, rise_low: null, rise_high: null, head: null, baseline: null, score: null, budget: null, probe: null };
  return { ...unknown, terms: {}, wanted: siblings, granted: siblings, refused: 0, flips: false, waited: false, said: `branched: ${siblings} more`, siblings: [] };
}

function byPlace(a: string, b: string): number {
  const [x, y] = [a.split(".").map(Number), b.split(".").map(Number)];
  for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i]! - y[i]!;
  return x.length - y.length;
}
