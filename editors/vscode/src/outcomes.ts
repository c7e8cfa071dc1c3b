/**
 * What became of the suggestions that were shown, counted for the user alone.
 *
 * VS Code runs a command when a whole suggestion is accepted, and tells nobody of the others. So a
 * suggestion counts as rejected when another one is offered that is not what is left of it, for
 * then it was typed over, or left. Accepted word by word it shrinks and stays the same suggestion;
 * so it does where the user types what it says.
 */

import type * as vscode from "vscode";

export type Outcome = "accepted" | "rejected";

export const ACCEPTED = "qcn.accepted";

/** What of a document the rules look at. */
interface Text {
  readonly uri: { toString(): string };
}

interface Offer {
  readonly uri: string;
  readonly text: string;
}

export class Outcomes {
  private last: Offer | undefined;

  constructor(private readonly report: (outcome: Outcome) => void) {}

  /** Note what is offered; returns the items with the command that tells of their acceptance. */
  offered(document: Text, items: readonly vscode.InlineCompletionItem[]): vscode.InlineCompletionItem[] {
    const [item] = items;
    if (item !== undefined && typeof item.insertText === "string") {
      const offer = { uri: document.uri.toString(), text: item.insertText };
      if (this.last !== undefined && !goesOn(this.last, offer)) {
        this.report("rejected");
      }
      this.last = offer;
    }
    return items.map((one) => {
      one.command = { title: "", command: ACCEPTED, arguments: [() => this.accepted()] };
      return one;
    });
  }

  private accepted(): void {
    this.last = undefined;
    this.report("accepted");
  }
}

/** Whether an offer is what is left of an earlier one; both begin with what is typed of the line. */
function goesOn(earlier: Offer, now: Offer): boolean {
  return earlier.uri === now.uri && (earlier.text.endsWith(now.text) || now.text.startsWith(earlier.text));
}
