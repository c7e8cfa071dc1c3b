/** The extension: a thin client. Everything that can live in the language server does. */

import * as vscode from "vscode";

import { ContextView } from "./contextView";
import { install } from "./install";
import { showMenu } from "./menu";
import { chooseModel } from "./models";
import { ACCEPTED } from "./outcomes";
import { tellProblems } from "./problems";
import { collectReport } from "./report";
import { Server } from "./server";
import { StatusBar } from "./statusBar";

const WELCOMED = "welcomed";

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  const server = new Server(String(context.extension.packageJSON.version), context.globalStorageUri.fsPath);
  const view = new ContextView(server, context.extensionUri);
  const walkthrough = `${context.extension.id}#start`;
  const commands: Record<string, (...args: never[]) => unknown> = {
    [ACCEPTED]: (tell: () => void) => tell(),
    "qcn.menu": () => showMenu(server),
    "qcn.restart": () => server.start(),
    "qcn.pause": () => server.pause(!server.paused),
    "qcn.showContext": () => view.show(),
    "qcn.showLog": () => server.log.show(),
    "qcn.chooseModel": () => chooseModel(),
    "qcn.install": () => install(server, context.extensionPath),
    "qcn.openSettings": () => vscode.commands.executeCommand("workbench.action.openSettings", `@ext:${context.extension.id}`),
    "qcn.report": () => collectReport(server, context),
    "qcn.walkthrough": () => openWalkthrough(server, walkthrough),
  };
  context.subscriptions.push(
    server,
    new StatusBar(server),
    tellProblems(server),
    server.onDidChange(() => tellRunning(server)),
    ...Object.entries(commands).map(([name, run]) => vscode.commands.registerCommand(name, run)),
    vscode.workspace.onDidGrantWorkspaceTrust(() => server.start()),
    vscode.workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration("qcn.server")) {
        void server.start();
      }
    }),
  );
  await server.start();
  if (!context.globalState.get(WELCOMED) && server.standing.kind === "missing") {
    await context.globalState.update(WELCOMED, true);
    void vscode.commands.executeCommand("qcn.walkthrough");
  }
}

/** Tell the walkthrough whether its first step is done. */
function tellRunning(server: Server, running = server.standing.kind === "running"): Thenable<unknown> {
  return vscode.commands.executeCommand("setContext", "qcn.running", running);
}

/** VS Code ticks a step when the context changes, and never where that was before it knew the walkthrough. */
async function openWalkthrough(server: Server, walkthrough: string): Promise<void> {
  await tellRunning(server, false);
  await vscode.commands.executeCommand("workbench.action.openWalkthrough", walkthrough);
  await tellRunning(server);
}
