/**
 * Which language server to start: the one that the user chose, else the one in the extension's own
 * environment, else one that is installed.
 *
 * Nothing inside the workspace is ever started: a repository that brings its own `qcn-lsp` must not
 * have it run, so folders of the search path that are relative or lie in the workspace are passed
 * over. (The settings are of scope `machine`, so no workspace can set them.)
 */

import * as path from "node:path";

/** A command line that serves, and where it was found, in words for the log. */
export interface Launch {
  readonly command: string;
  readonly args: readonly string[];
  readonly found: string;
}

/** Why there is nothing to start, and whether that is because of a setting. */
export interface Missing {
  readonly problem: string;
  readonly chosen: boolean;
}

/** What the search depends on; a test brings its own. */
export interface Machine {
  readonly platform: NodeJS.Platform;
  readonly home: string;
  readonly searchPath: string;
  readonly workspaceFolders: readonly string[];
  /** The environment that the extension installs a server into; it may not be there. */
  readonly environment: string;
  readonly isExecutable: (file: string) => boolean;
}

/** The settings `qcn.server.*`. */
export interface Chosen {
  readonly command: string | null;
  readonly python: string | null;
}

export function locate(chosen: Chosen, machine: Machine): Launch | Missing {
  if (chosen.command) {
    const command = expandHome(chosen.command, machine.home);
    return startable(command, "qcn.server.command", machine) ?? launch(command, [], "the setting qcn.server.command");
  }
  if (chosen.python) {
    const python = expandHome(chosen.python, machine.home);
    // Safe-path mode: a module of the current folder must not take a library's place.
    const args = ["-P", "-m", "qcn_lsp"];
    return startable(python, "qcn.server.python", machine) ?? launch(python, args, "the setting qcn.server.python");
  }
  const own = programOf(machine.environment, "qcn-lsp", machine.platform);
  if (machine.isExecutable(own)) {
    return launch(own, [], "the extension's own environment");
  }
  const installed = find("qcn-lsp", machine);
  if (installed !== undefined) {
    return launch(installed, [], path.dirname(installed));
  }
  return { problem: "The language server qcn-lsp is not installed on this machine.", chosen: false };
}

/** Where a Python environment keeps a program. */
export function programOf(environment: string, name: string, platform: NodeJS.Platform): string {
  const [folder, suffix] = platform === "win32" ? ["Scripts", ".exe"] : ["bin", ""];
  return path.join(environment, folder, `${name}${suffix}`);
}

/** Return the path of a program on the search path, by the same rules; undefined where there is none. */
export function find(program: string, machine: Machine): string | undefined {
  const candidates = folders(machine).flatMap((folder) =>
    names(program, machine.platform).map((name) => path.join(folder, name)),
  );
  return candidates.find((file) => machine.isExecutable(file));
}

function launch(command: string, args: readonly string[], found: string): Launch {
  return { command, args, found };
}

/** What is wrong with a program that the user chose. */
function startable(file: string, setting: string, machine: Machine): Missing | undefined {
  if (!path.isAbsolute(file)) {
    return { problem: `${setting} must be an absolute path, not "${file}".`, chosen: true };
  }
  if (!machine.isExecutable(file)) {
    return { problem: `${setting}: there is no program at ${file}.`, chosen: true };
  }
  return undefined;
}

function folders(machine: Machine): string[] {
  const separator = machine.platform === "win32" ? ";" : ":";
  const onPath = machine.searchPath
    .split(separator)
    .filter((folder) => path.isAbsolute(folder) && !machine.workspaceFolders.some((root) => isInside(folder, root)));
  // An editor started from a desktop often lacks this one in its search path.
  return [...onPath, path.join(machine.home, ".local", "bin")];
}

function names(program: string, platform: NodeJS.Platform): string[] {
  return platform === "win32" ? [`${program}.exe`] : [program];
}

function isInside(folder: string, root: string): boolean {
  const relative = path.relative(root, folder);
  return relative.split(path.sep)[0] !== ".." && !path.isAbsolute(relative);
}

function expandHome(file: string, home: string): string {
  return file === "~" || file.startsWith("~/") ? path.join(home, file.slice(1)) : file;
}
