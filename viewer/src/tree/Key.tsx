/** What the drawing's colours and signs mean, and the keys that walk it. */
import type { Colouring } from "./Drawing";

const COLOURS: { [colouring in Colouring]: [string, string][] } = {
  author: [["prompt", "prompt"], ["policy", "policy, shaded by its head entropy"], ["tool", "tool result"]],
  entropy: [["policy", "mean entropy: pale 0, full 1 nat or more"]],
  credit: [["good", "credit up"], ["bad", "credit down, full at 1.5"]],
};

export function Key({ colouring }: { colouring: Colouring }) {
  return (
    <p class="key soft">
      {COLOURS[colouring].map(([name, text]) => <span key={name}><i class={`swatch ${name}`} /> {text}</span>)}
      <span><i class="tip granted">1</i> branched, with siblings given</span>
      <span><i class="tip refused" /> wanted, refused by the budget</span>
      <span><i class="tip none" /> no branch wanted</span>
      <span class="keys-help"><kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> walk, <kbd>/</kbd> search, <kbd>Enter</kbd> read, <kbd>Shift</kbd>+click compare</span>
    </p>
  );
}
