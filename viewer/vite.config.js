import { defineConfig } from "vite";
import { sourcesHash } from "./sources.js";

/** Three files with fixed names: the server and the export know them, and a rebuild of the same sources gives the same bytes. */
export default defineConfig({
  base: "./",
  plugins: [
    {
      name: "say-what-it-was-built-from",
      transformIndexHtml: (html) => html.replace("%SOURCES%", sourcesHash(import.meta.dirname)),
    },
  ],
  build: {
    outDir: ".built", // swap.js moves it to src/arpo/view/static once it is whole
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    assetsInlineLimit: Number.MAX_SAFE_INTEGER,
    rollupOptions: { output: { entryFileNames: "app.js", assetFileNames: "app[extname]", codeSplitting: false } },
  },
  server: { proxy: { "/api": "http://127.0.0.1:8642" } },
});
