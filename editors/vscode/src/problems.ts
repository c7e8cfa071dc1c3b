/** Tells the user, once, of what only they can put right, with the remedy as a button. */

import * as vscode from "vscode";

import { HELP, INSTALL, LOG, offer, RESTART, SETTINGS } from "./messages";
import type { Server, Standing } from "./server";

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
  await offer(standing.kind === "failed" ? vscode.window.showErrorMessage : vscode.window.showWarningMessage, standing.problem, buttons);
}
