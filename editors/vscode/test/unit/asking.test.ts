import assert from "node:assert/strict";
import { test } from "node:test";

import { Asking } from "../../src/asking";

test("what is wanted while a question is under way is asked once more behind it, however often", async () => {
  const answers: (() => void)[] = [];
  const asking = new Asking(() => new Promise((answer) => answers.push(answer)));
  const done = asking.wanted();
  void asking.wanted();
  void asking.wanted();
  assert.equal(answers.length, 1);
  answers[0]?.();
  await new Promise(setImmediate);
  assert.equal(answers.length, 2);
  answers[1]?.();
  await done;
  assert.equal(answers.length, 2);
  void asking.wanted();
  assert.equal(answers.length, 3);
});
