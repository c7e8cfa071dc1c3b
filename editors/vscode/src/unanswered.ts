/**
 * Ghost text that comes late: asked for while the model was loading, it is asked for again when that
 * is done, if the cursor is still there. VS Code itself asks only when something is typed.
 */

import * as vscode from "vscode";

import { isReady, type Status } from "./status";

interface Place {
  readonly uri: string;
  readonly version: number;
  readonly position: vscode.Position;
}

export class Unanswered {
  private place: Place | undefined;

  /** Note how many suggestions came for a place. */
  answered(document: vscode.TextDocument, position: vscode.Position, suggestions: number): void {
    this.place = suggestions ? undefined : { uri: document.uri.toString(), version: document.version, position };
  }

  onStatus(before: Status, now: Status): void {
    const place = this.place;
    if (isReady(before) || !isReady(now) || place === undefined) {
      return;
    }
    this.place = undefined;
    const editor = vscode.window.activeTextEditor;
    const { uri, version } = editor?.document ?? {};
    if (uri?.toString() === place.uri && version === place.version && editor?.selection.active.isEqual(place.position)) {
      void vscode.commands.executeCommand("editor.action.inlineSuggest.trigger");
    }
  }
}
