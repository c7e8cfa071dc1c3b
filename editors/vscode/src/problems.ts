/** Tells the user, once, of what only they can put right, with the remedy as a button. */

import * as vscode from "vscode";

import type { Server, Standing } from "./server";

const RESTART = "Restart";
const LOG = "Show Log";
const SETTINGS = "Open Settings";
const INSTALL = "Install…";
const HELP = "Help";

const COMMANDS: Record<string, [string, ...unknown[]]> = {
  [RESTART]: ["qcn.restart"],
  [LOG]: ["qcn.showLog"],
  [SETTINGS]: ["workbench.action.openSettings", "qcn.server"],
  [INSTALL]: ["qcn.install"],
  [HELP]: ["qcn.walkthrough"],
};

export function tellProblems(server: Server): vscode.Disposable {
  let told = "";
  return server.onDidChange((standing) => {
    const problem = "problem" in standing ? standing.problem : "";
    if (problem !== told) {
      told = problem;
      void tell(standing);
    }
  });
}

async function tell(standing: Standing): Promise<void> {
  if (!("problem" in standing)) {
    return;
  }
  const buttons = {
    failed: [RESTART, LOG],
    unfit: [INSTALL, SETTINGS, LOG],
    missing: "chosen" in standing && standing.chosen ? [SETTINGS, INSTALL] : [INSTALL, SETTINGS, HELP],
  }[standing.kind];
  const show = standing.kind === "failed" ? vscode.window.showErrorMessage : vscode.window.showWarningMessage;
  const picked = await show(`qcn: ${standing.problem}`, ...buttons);
  const [command, ...args] = (picked && COMMANDS[picked]) || [];
  if (command) {
    await vscode.commands.executeCommand(command, ...args);
  }
}
