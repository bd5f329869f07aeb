/** Numbers and times as a reader wants them. What was not measured is a dash. */

export const NONE = "–";

/** About four digits, thousands as 12,345. */
export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size < 1e-12) return "0"; // what sums of floating-point numbers leave
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : digits)));
}

/** Marks of an axis, with as many digits as tell them apart. */
export function axisTexts(ticks: number[]): string[] {
  const step = Math.abs((ticks[1] ?? 0) - (ticks[0] ?? 0)) || 1;
  const size = Math.max(...ticks.map(Math.abs));
  if (size < 0.001 || size >= 1e7) return ticks.map((tick) => (Math.abs(tick) < step / 2 ? "0" : tick.toExponential(1)));
  let digits = 0;
  while (digits < 6 && Math.abs(Number(step.toFixed(digits)) - step) > step * 1e-6) digits += 1;
  return ticks.map((tick) => Number(tick.toFixed(digits)).toLocaleString("en", { maximumFractionDigits: digits }));
}

export const signed = (value: number | null | undefined) => (value != null && value >= 1e-12 ? `+${number(value)}` : number(value));

export const percent = (value: number | null | undefined, digits = 1) => (value === null || value === undefined ? NONE : `${(value * 100).toFixed(digits)} %`);

export const count = (n: number, noun: string, many = `${noun}s`) => `${n.toLocaleString("en")} ${n === 1 ? noun : many}`;

export const clock = (time: number | null) => (time === null ? NONE : new Date(time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));

/** reward/probe_lines -> reward, probe lines */
export const words = (name: string) => name.replace(/_/g, " ").replace(/\//g, ", ");
