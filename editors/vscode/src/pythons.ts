/** Which Python can run the language server, or make an environment for it. */

import { spawnSync } from "node:child_process";

import { find, type Machine } from "./locate";

const OLDEST = [3, 11] as const;
const NAMES = ["python3", "python", "python3.14", "python3.13", "python3.12", "python3.11"];
/** Prints the version and, where that will do, which of the modules that we want there are. */
const LOOK = `import sys
print("%d.%d" % sys.version_info[:2])
if sys.version_info >= (${OLDEST.join(", ")}):
    from importlib.util import find_spec
    print(" ".join(name for name in ("qcn_lsp", "venv", "ensurepip") if find_spec(name)))`;
const PATIENCE_MS = 20_000;

/** What a program is: no Python that will do, or what it can be used for. */
export type Python =
  | { readonly program: string; readonly problem: string }
  | { readonly program: string; readonly version: string; readonly serves: boolean; readonly makesEnvironments: boolean };

/** Ask a program what it is; run in a folder that holds no Python modules. */
export function examine(program: string, folder: string): Python {
  const { status, stdout } = spawnSync(program, ["-c", LOOK], { cwd: folder, encoding: "utf8", timeout: PATIENCE_MS, windowsHide: true });
  const [version = "", modules = ""] = (stdout ?? "").split(/\r?\n/);
  const [, major, minor] = /^(\d+)\.(\d+)$/.exec(version) ?? [];
  if (status !== 0 || major === undefined) {
    return { program, problem: `${program} is no Python that can be started.` };
  }
  if (Number(major) < OLDEST[0] || (Number(major) === OLDEST[0] && Number(minor) < OLDEST[1])) {
    return { program, problem: `${program} is Python ${version}; the language server needs ${OLDEST.join(".")} or newer.` };
  }
  const has = modules.split(" ");
  return { program, version, serves: has.includes("qcn_lsp"), makesEnvironments: has.includes("venv") && has.includes("ensurepip") };
}

/** The first Python on the search path that makes environments, or else why none of them will do. */
export function findPython(machine: Machine, folder: string): Python {
  const found = NAMES.map((name) => find(name, machine)).filter((program) => program !== undefined);
  const examined = [...new Set(found)].map((program) => examine(program, folder));
  const usable = examined.find((python) => !("problem" in python) && python.makesEnvironments);
  return usable ?? examined.map(withoutModules).find((python) => "problem" in python) ?? { program: "", problem: "There is no Python on the search path." };
}

/** Say of one that cannot make environments that it will not do. */
export function withoutModules(python: Python): Python {
  if ("problem" in python || python.makesEnvironments) {
    return python;
  }
  const { program, version } = python;
  const remedy = `on Debian and Ubuntu the package python${version}-venv brings them`;
  return { program, problem: `${program} makes no environments: its modules venv and ensurepip are missing (${remedy}).` };
}
