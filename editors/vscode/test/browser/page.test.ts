/** The same page as `qcn context --open` shows it, in a plain Chromium. */

import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import type { Browser, Page } from "playwright-core";

import { aBrowser, endProcesses, PATIENCE_MS, privateFolders, PYTHON, SCREENSHOTS } from "./vscode";

const HOSTILE = "<img src=x onerror=alert(1)>.py";

let folder: string;
let shop: string;
let command: ChildProcess;
let browser: Browser;
let page: Page;
const complaints: string[] = [];

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "qcn-page-"));
  shop = join(folder, "shop");
  mkdirSync(shop);
  writeFileSync(join(shop, HOSTILE), "def price(item):\n    return item.price\n\n\n".repeat(20));
  writeFileSync(join(shop, "baskets.py"), "class Basket:\n    def add(self, item):\n        pass\n\n\n".repeat(10));
  writeFileSync(join(shop, ".env"), "PASSWORD=hunter2\n");
  command = spawn(PYTHON, ["-P", "-m", "qcn_lsp.cli", "context", "--open", "--tokens", "6000", shop], {
    env: { ...process.env, ...privateFolders(folder), BROWSER: "echo opens %s" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  browser = await aBrowser();
  page = await browser.newPage({ viewport: { width: 1280, height: 960 }, colorScheme: "light" });
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("dialog", (dialog) => void dialog.dismiss().then(() => complaints.push("a dialog")));
  const target = /href="([^"]+)"/.exec(readFileSync(await signpost(command), "utf8"))?.[1] ?? "";
  await page.goto(target);
  await page.locator("#strip .segment").first().waitFor();
});
after(async () => {
  await browser.close();
  command.kill();
  await endProcesses(folder);
  rmSync(folder, { recursive: true, force: true });
});

test("names of files are text, and nothing breaks the page's policy", async () => {
  await page.getByText("All parts as a table").click();
  await page.getByRole("rowheader", { name: HOSTILE }).waitFor();
  assert.equal(await page.locator("img").count(), 0);
  assert.deepEqual(complaints, []);
  await page.locator("#refreshes tr").first().waitFor();
  await page.screenshot({ path: join(SCREENSHOTS, "page-light.png"), fullPage: true });
});

test("keys go from part to part, and what is chosen is said", async () => {
  const strip = page.getByRole("listbox");
  await strip.focus();
  await page.keyboard.press("Home");
  const first = await page.locator("#part dd").first().textContent();
  await page.keyboard.press("ArrowRight");
  const second = await page.locator("#part dd").first().textContent();
  assert.deepEqual([first, second].sort(), [HOSTILE, "baskets.py"].sort());
  assert.equal(await page.locator("#part").getAttribute("aria-live"), "polite");
  const active = (await strip.getAttribute("aria-activedescendant")) ?? "";
  assert.match((await page.locator(`#${active}`).getAttribute("aria-label")) ?? "", /baskets\.py|img/);
  assert.equal(await strip.getByRole("option", { selected: true }).count(), 1);
});

test("it is live", async () => {
  writeFileSync(join(shop, "orders.py"), "class Order:\n    pass\n\n\n".repeat(10));
  await page.getByRole("rowheader", { name: "orders.py" }).waitFor();
  assert.match((await page.locator("#zones").textContent()) ?? "", /overlay/);
});

test("it is dark where the system is", async () => {
  await page.emulateMedia({ colorScheme: "dark" });
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(ground, "rgb(22, 25, 29)");
  await page.screenshot({ path: join(SCREENSHOTS, "page-dark.png"), fullPage: true });
});

test("the command ends with the page", async () => {
  await page.close({ runBeforeUnload: true });
  const [code] = await once(command, "exit");
  assert.equal(code, 0);
});

/** The file that a browser would be given. */
async function signpost(process_: ChildProcess): Promise<string> {
  assert.ok(process_.stdout);
  for await (const line of createInterface({ input: process_.stdout })) {
    const opened = /^opens (.+)$/.exec(line)?.[1];
    if (opened) {
      return fileURLToPath(opened);
    }
  }
  throw new Error("the command ended");
}
