// Bundles the extension into dist/, or its tests: `node build.mjs [tests]`.

import { cpSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const clone = join(here, "..", "..");
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
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
  for (const name of ["context.html", "context.css", "context.js"]) {
    cpSync(join(clone, "qcn_lsp", "view", name), join(here, "dist", "view", name));
  }
  const wheel = readdirSync(join(clone, "dist")).find((name) => name === `qcn_lsp-${version}-py3-none-any.whl`);
  if (wheel === undefined) {
    throw new Error(`dist/ has no wheel of version ${version}: make wheel`);
  }
  cpSync(join(clone, "dist", wheel), join(here, "dist", "server", wheel));
  cpSync(join(clone, "LICENSE"), join(here, "LICENSE"));
}
