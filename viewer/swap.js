/** Puts the finished build where users get it from, and removes what an earlier one left: a build that fails changes nothing there. */
import { mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";

const [from, to] = process.argv.slice(2);
const built = readdirSync(from);
if (!["index.html", "app.js", "app.css"].every((name) => built.includes(name))) throw new Error(`the build in ${from} is not whole: ${built.join(", ")}`);
mkdirSync(to, { recursive: true });
for (const name of built) renameSync(join(from, name), join(to, name));
for (const name of readdirSync(to)) if (!built.includes(name)) rmSync(join(to, name), { recursive: true });
rmSync(from, { recursive: true });
