/**
 * Installs the language server that comes with the extension, by the tool that the user has.
 *
 * Our own wheel, and not a name at a package index: no index holds it, and whoever registers the
 * name there would be installed.
 */

import { readdirSync } from "node:fs";
import * as path from "node:path";

import * as vscode from "vscode";

import { find } from "./locate";
import { machine, type Server } from "./server";

const HELP = "https://docs.astral.sh/uv/getting-started/installation/";

interface Choice extends vscode.QuickPickItem {
  readonly take: () => Promise<void>;
}

export async function install(server: Server, extensionFolder: string): Promise<void> {
  if (!vscode.workspace.isTrusted) {
    void vscode.window.showInformationMessage("qcn: nothing is installed while the folder is not trusted.");
    return;
  }
  const wheel = bundledWheel(extensionFolder);
  const choices = [...(wheel ? byTool(server, wheel) : []), choosePython(), getUv()];
  const placeHolder = "How to get the language server? With the engine it is some GB, most of it PyTorch.";
  await (await vscode.window.showQuickPick(choices, { title: "qcn: install", placeHolder }))?.take();
}

/** The wheel that the extension was packed with. */
function bundledWheel(extensionFolder: string): string | undefined {
  const folder = path.join(extensionFolder, "dist", "server");
  const name = readdirSync(folder).find((file) => file.endsWith(".whl"));
  return name && path.join(folder, name);
}

function byTool(server: Server, wheel: string): Choice[] {
  const what = `${wheel}[engine]`;
  const tools: [string, string[]][] = [
    ["uv", ["tool", "install", "--force", what]],
    ["pipx", ["install", "--force", what]],
  ];
  return tools.flatMap(([tool, args]) => {
    const program = find(tool, machine());
    const detail = `${tool} ${args.join(" ")}`;
    return program ? [{ label: `$(cloud-download) Install with ${tool}`, detail, take: () => run(server, program, args) }] : [];
  });
}

/** Run it where the user sees it, and start the server when it is done. */
async function run(server: Server, program: string, args: string[]): Promise<void> {
  const task = new vscode.Task(
    { type: "qcn" },
    vscode.TaskScope.Workspace,
    "Install the language server",
    "qcn",
    new vscode.ProcessExecution(program, args, { cwd: path.dirname(program) }),
  );
  const execution = await vscode.tasks.executeTask(task);
  const code = await new Promise<number | undefined>((resolve) => {
    const listening = vscode.tasks.onDidEndTaskProcess((ended) => {
      if (ended.execution === execution) {
        listening.dispose();
        resolve(ended.exitCode);
      }
    });
  });
  if (code === 0) {
    await server.start();
  } else {
    void vscode.window.showErrorMessage("qcn: the installation failed; the terminal shows why.");
  }
}

function choosePython(): Choice {
  return {
    label: "$(file-directory) Choose a Python in which it is installed",
    detail: "Sets qcn.server.python for this machine",
    take: async () => {
      const [file] = (await vscode.window.showOpenDialog({ title: "A Python with qcn-lsp", openLabel: "Use" })) ?? [];
      if (file) {
        const settings = vscode.workspace.getConfiguration("qcn.server");
        await settings.update("python", file.fsPath, vscode.ConfigurationTarget.Global);
      }
    },
  };
}

function getUv(): Choice {
  return {
    label: "$(link-external) Get uv, which installs Python programs",
    detail: HELP,
    take: async () => {
      await vscode.env.openExternal(vscode.Uri.parse(HELP));
    },
  };
}
