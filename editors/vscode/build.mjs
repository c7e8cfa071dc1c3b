// Bundles the extension into dist/, or its tests: `node build.mjs [tests]`.

import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const common = {
  absWorkingDir: here,
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node20",
  logLevel: "warning",
  legalComments: "none",
};

if (process.argv[2] === "tests") {
  rmSync(join(here, "build"), { recursive: true, force: true });
  for (const [folder, external] of [
    ["unit", ["vscode"]],
    ["host", ["vscode"]],
    ["browser", ["playwright-core"]],
  ]) {
    const names = readdirSync(join(here, "test", folder)).filter((name) => name.endsWith(".ts"));
    const entryPoints = names.map((name) => join("test", folder, name));
    await build({ ...common, entryPoints, external, outdir: join("build", folder), sourcemap: "inline" });
  }
} else {
  rmSync(join(here, "dist"), { recursive: true, force: true });
  await build({ ...common, entryPoints: ["src/extension.ts"], external: ["vscode"], outfile: "dist/extension.js", minify: true });
}
