import assert from "node:assert/strict";
import { test } from "node:test";

import { Crashes, MOST_CRASHES, WITHIN_MS } from "../../src/crashes";

test("five crashes within three minutes are one too many, spread wider they are not", () => {
  const crashes = new Crashes();
  const quick = [0, 1, 2, 3, 4].map((minute) => crashes.happened(minute * 40_000));
  assert.deepEqual(quick, [false, false, false, false, true]);
  const slow = new Crashes();
  const step = WITHIN_MS / (MOST_CRASHES - 1);
  assert.ok([...Array(20).keys()].every((number) => !slow.happened(number * step)));
  crashes.forget();
  assert.equal(crashes.happened(170_000), false);
});
