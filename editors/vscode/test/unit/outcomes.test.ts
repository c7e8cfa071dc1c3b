import assert from "node:assert/strict";
import { test } from "node:test";

import type { InlineCompletionItem } from "vscode";

import { Outcomes, type Outcome } from "../../src/outcomes";

const A = { uri: "file:///a.py" };
const B = { uri: "file:///b.py" };

function items(...texts: string[]): InlineCompletionItem[] {
  return texts.map((insertText) => ({ insertText }));
}

function accept([item]: InlineCompletionItem[]): void {
  const [tell] = item?.command?.arguments as [() => void];
  tell();
}

test("what is accepted is reported when VS Code runs the item's command", () => {
  const seen: Outcome[] = [];
  const outcomes = new Outcomes((outcome) => seen.push(outcome));
  accept(outcomes.offered(A, items("total = 1")));
  outcomes.offered(A, items("count = 2"));
  assert.deepEqual(seen, ["accepted"]);
});

test("another suggestion, here or in another file, means that the last one was passed over", () => {
  const seen: Outcome[] = [];
  const outcomes = new Outcomes((outcome) => seen.push(outcome));
  outcomes.offered(A, items("total = 1"));
  outcomes.offered(A, items("count = 2"));
  outcomes.offered(B, items("count = 2"));
  assert.deepEqual(seen, ["rejected", "rejected"]);
});

test("a suggestion that is typed, or taken word by word, stays the same one", () => {
  const seen: Outcome[] = [];
  const outcomes = new Outcomes((outcome) => seen.push(outcome));
  outcomes.offered(A, items("def f():\n    return 1"));
  outcomes.offered(A, items("def f():\n    return 1"));
  outcomes.offered(A, items("    return 1"));
  outcomes.offered(A, items());
  assert.deepEqual(seen, []);
});
