/**
 * Installs the language server that comes with the extension: by the tool that the user has, or into
 * an environment of the extension's own, which a Python of the user's makes.
 *
 * Our own wheel, and not a name at a package index: no index holds it, and whoever registers the
 * name there would be installed.
 */

import { mkdirSync, readdirSync, rmSync } from "node:fs";
import * as path from "node:path";
import { pathToFileURL } from "node:url";

import * as vscode from "vscode";

import { find, programOf } from "./locate";
import { LOG } from "./messages";
import { examine, findPython, withoutModules, type Python } from "./pythons";
import { runSteps, type Step } from "./running";
import type { Server } from "./server";
import { ofTheIndex, waysOf } from "./tools";

const HELP = "https://docs.astral.sh/uv/getting-started/installation/";
const LONGEST = 80;
const OTHERWISE = "Install Otherwise…";

interface Choice extends vscode.QuickPickItem {
  readonly take: () => Promise<void>;
}

export async function install(server: Server, extensionFolder: string): Promise<void> {
  if (!vscode.workspace.isTrusted) {
    void vscode.window.showInformationMessage("qcn: nothing is installed while the folder is not trusted.");
    return;
  }
  await new Installer(server, bundledWheel(extensionFolder)).offer();
}

/** The wheel that the extension was packed with. */
function bundledWheel(extensionFolder: string): string {
  const folder = path.join(extensionFolder, "dist", "server");
  const name = readdirSync(folder).find((file) => file.endsWith(".whl"));
  if (name === undefined) {
    throw new Error(`${folder} holds no wheel: the extension was not packed by make vsix.`);
  }
  return path.join(folder, name);
}

class Installer {
  /** A folder without modules, to run Python in. */
  private readonly folder: string;
  /** By its address, in which a path may hold anything. */
  private readonly what: string;

  constructor(
    private readonly server: Server,
    wheel: string,
  ) {
    this.folder = path.dirname(wheel);
    this.what = `qcn-lsp[engine] @ ${pathToFileURL(wheel).href}`;
  }

  async offer(): Promise<void> {
    const python = findPython(this.server.machine(), this.folder);
    const tools = this.byTool();
    const own = "problem" in python ? [] : [this.ownEnvironment(python.program, `Python ${python.version}`)];
    const nothing = !tools.length && "problem" in python;
    const placeHolder = nothing ? `No uv or pipx. ${python.problem}` : "Most of it is PyTorch, of which there are several builds.";
    const choices = [...tools, ...own, this.choosePython(), getUv()];
    const title = "qcn: install the language server";
    // The walkthrough may open meanwhile, and takes the focus.
    await (await vscode.window.showQuickPick(choices, { title, placeHolder, ignoreFocusOut: true }))?.take();
  }

  private byTool(): Choice[] {
    const machine = this.server.machine();
    return ["uv", "pipx"].flatMap((tool) => {
      const program = find(tool, machine);
      return program ? waysOf(tool, program, this.what, machine.platform) : [];
    }).map(({ tool, step, label, detail }) => ({ label: `$(cloud-download) ${label}`, detail, take: () => this.run(tool, [step]) }));
  }

  private ownEnvironment(python: string, name: string): Choice {
    return {
      label: `$(cloud-download) Install with ${name}`,
      detail: `${python}, in an environment of the extension's own; ${ofTheIndex(process.platform)}`,
      take: () => this.intoEnvironment(python),
    };
  }

  private choosePython(): Choice {
    return {
      label: "$(file-directory) Choose a Python…",
      detail: "One in which qcn-lsp is installed, or one to install it with",
      take: async () => {
        const [file] = (await vscode.window.showOpenDialog({ title: "A Python", openLabel: "Use" })) ?? [];
        if (file) {
          await this.use(examine(file.fsPath, this.folder));
        }
      },
    };
  }

  /** Use a Python that was chosen: as the server's, or else to install it with. */
  private async use(python: Python): Promise<void> {
    if (!("problem" in python) && python.serves) {
      const settings = vscode.workspace.getConfiguration("qcn.server");
      await settings.update("python", python.program, vscode.ConfigurationTarget.Global);
      return;
    }
    const usable = withoutModules(python);
    if ("problem" in usable) {
      await this.tell(usable.problem);
    } else {
      await this.intoEnvironment(usable.program);
    }
  }

  private async intoEnvironment(python: string): Promise<void> {
    const environment = this.server.environment;
    await this.server.stop(); // it may run from there
    try {
      mkdirSync(path.dirname(environment), { recursive: true });
      rmSync(environment, { recursive: true, force: true });
      mkdirSync(environment); // not with those above: then Node names another reason
    } catch (error) {
      await this.server.start(); // there may be another
      const [reason] = (error as Error).message.split(","); // what follows is the path again
      await this.tell(`${environment} cannot be made (${reason}): have that folder made writable, or install with uv or pipx.`);
      return;
    }
    const within = programOf(environment, "python", process.platform);
    const steps = [
      // Where `venv` itself brings pip, it keeps to itself why that fails.
      { program: python, args: ["-m", "venv", "--without-pip", environment] },
      { program: within, args: ["-m", "ensurepip", "--default-pip"] },
      { program: within, args: ["-m", "pip", "install", "--no-input", "--disable-pip-version-check", this.what] },
    ];
    await this.run("pip", steps, environment);
  }

  /** Run it with its output in the log, and start the server when it is done. */
  private async run(tool: string, steps: readonly Step[], environment?: string): Promise<void> {
    const { log } = this.server;
    const location = vscode.ProgressLocation.Notification;
    const title = "qcn: installing the language server";
    const [reason, cancelled] = await vscode.window.withProgress({ location, title, cancellable: true }, async (progress, token) => {
      const stop = new AbortController();
      token.onCancellationRequested(() => stop.abort());
      const line = (text: string): void => {
        log.info(text);
        progress.report({ message: shortened(text) });
      };
      return [await runSteps(steps, this.folder, { line, signal: stop.signal }), token.isCancellationRequested] as const;
    });
    if (reason !== undefined && environment !== undefined) {
      rmSync(environment, { recursive: true, force: true, maxRetries: 5 }); // half of one is none
    }
    await this.server.start();
    if (reason === undefined) {
      await this.tellWhereItIs(tool);
    } else if (!cancelled) {
      await this.tell(`${tool} could not install the language server: ${reason}`);
    }
  }

  /** Say where to look for a server that was installed and is not found. */
  private async tellWhereItIs(tool: string): Promise<void> {
    if (this.server.standing.kind === "missing") {
      const ask = tool === "uv" ? "uv tool dir --bin" : "pipx environment --value PIPX_BIN_DIR";
      await this.tell(`${tool} has installed qcn-lsp where it is not looked for: set qcn.server.command to its path, in the folder that "${ask}" prints.`);
    }
  }

  private async tell(problem: string): Promise<void> {
    this.server.log.error(problem);
    const picked = await vscode.window.showErrorMessage(`qcn: ${problem}`, LOG, OTHERWISE);
    if (picked === LOG) {
      this.server.log.show();
    } else if (picked === OTHERWISE) {
      await this.offer();
    }
  }
}

/** A tool's line as it fits a notification: files without their folders, and the beginning of a list. */
function shortened(line: string): string {
  const text = line.replace(/ \(from .*\)$/, "").replace(/\S*[\\/](?=[^\\/\s])/g, "");
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}

function getUv(): Choice {
  return {
    label: "$(link-external) Get uv, which brings a Python along",
    detail: HELP,
    take: async () => {
      await vscode.env.openExternal(vscode.Uri.parse(HELP));
    },
  };
}
