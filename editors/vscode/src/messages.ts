/** What the user is told in a message box: who speaks, what is wrong, and the remedy as a button. */

import * as vscode from "vscode";
import { MessageType } from "vscode-languageclient/node";

export const RESTART = "Restart";
export const LOG = "Show Log";
export const SETTINGS = "Open Settings";
export const INSTALL = "Install…";
export const HELP = "Help";

const COMMANDS: Record<string, [string, ...unknown[]]> = {
  [RESTART]: ["qcn.restart"],
  [LOG]: ["qcn.showLog"],
  [SETTINGS]: ["workbench.action.openSettings", "qcn.server"],
  [INSTALL]: ["qcn.install"],
  [HELP]: ["qcn.walkthrough"],
};

type Show = (message: string, ...buttons: string[]) => Thenable<string | undefined>;

/** Show a message, and do what its button says. */
export async function offer(show: Show, message: string, buttons: readonly string[]): Promise<void> {
  const picked = await show(`qcn: ${message}`, ...buttons);
  const [command, ...args] = (picked && COMMANDS[picked]) || [];
  if (command) {
    await vscode.commands.executeCommand(command, ...args);
  }
}

/** Show a message of the server's; one about a setting names it. */
export async function tellMessage(message: string, type: MessageType): Promise<void> {
  const { showErrorMessage, showWarningMessage, showInformationMessage } = vscode.window;
  const shows: Partial<Record<MessageType, Show>> = { [MessageType.Error]: showErrorMessage, [MessageType.Warning]: showWarningMessage };
  const setting = /^(?:\S+: )?(qcn(?:\.\w+)+): /.exec(message)?.[1];
  const show = shows[type] ?? showInformationMessage;
  if (setting === undefined) {
    await offer(show, message, [LOG]);
  } else if ((await show(message, SETTINGS)) === SETTINGS) {
    await vscode.commands.executeCommand("workbench.action.openSettings", setting);
  }
}
