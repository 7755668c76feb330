// What a person does with the page of the hub, in Chromium. Takes a JSON object on its
// standard input, prints one: what was seen, and to which hosts the browser went.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const asked = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(join(asked.modules, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const seen = { hosts: [], errors: [], axe: {}, steps: {} };
const browser = await chromium.launch({
  executablePath: asked.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
});
const context = await browser.newContext({ viewport: { width: 1100, height: 800 } });
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
const hosts = new Set();
context.on("request", (request) => hosts.add(new URL(request.url()).host));
const page = await context.newPage();
page.setDefaultTimeout(20_000);
page.on("pageerror", (error) => seen.errors.push(String(error)));
page.on("console", (message) => {
  if (message.type() === "error" && !/status of 40[13]/.test(message.text())) seen.errors.push(message.text());
});

// By Playwright's own channel, which the page's policy does not hold for.
const check = async (name) => {
  const found = await page.evaluate(`${axe}; axe.run(document, {resultTypes: ["violations"]})`);
  seen.axe[name] = found.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" | ").slice(0, 500)}`);
};
const picture = async (name) => {
  if (asked.pictures) await page.screenshot({ path: join(asked.pictures, `${name}.png`) });
};
const at = (path) => page.goto(asked.url + path);

const steps = {
  async search() {
    await at("/");
    await check("models");
    await page.getByLabel("Search").fill("encoder");
    await page.getByText("1 model", { exact: true }).waitFor();
    const url = page.url();
    const found = await page.locator("tbody th a").allTextContents();
    await page.getByLabel("Search").fill("");
    await page.getByText(`${asked.models} models`).waitFor();
    await page.getByLabel("Licence").selectOption("mit");
    await page.getByText("1 model", { exact: true }).waitFor();
    const licensed = await page.locator("tbody th a").allTextContents();
    await page.getByLabel("Licence").selectOption("");
    await page.getByText(`${asked.models} models`).waitFor();
    await picture("page-models");
    return { url, found, licensed };
  },
  async keyboard() {
    await at("/mm/ui");
    await page.keyboard.press("Tab");
    const skip = await page.evaluate(() => document.activeElement.textContent);
    await page.keyboard.press("Enter");
    const main = await page.evaluate(() => document.activeElement.id);
    await page.keyboard.press("Tab");
    const first = await page.evaluate(() => document.activeElement.id);
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    return { skip, main, first, outline };
  },
  async model() {
    await at("/mm/ui");
    await page.getByRole("link", { name: asked.model, exact: true }).click();
    await page.getByRole("heading", { name: asked.model, level: 1 }).waitFor();
    await check("model");
    await picture("page-model");
    const copy = page.getByRole("button", { name: "Copy" }).first();
    await copy.click();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    return { copied, card: await page.locator(".prose").innerText(), images: await page.locator("img").count() };
  },
  async refused() {
    const answer = await page.evaluate(async (form) => {
      const sent = await fetch("/mm/ui/alias", { method: "POST", body: new URLSearchParams(form) });
      return sent.status;
    }, { model_id: asked.model, alias: "prod", version: "v1" });
    await at("/mm/ui/pulls");
    return { answer, forms: await page.locator("main form").count() };
  },
  async signIn() {
    await at(`/mm/ui/models/${asked.model}`);
    await page.getByRole("link", { name: "Sign in" }).click();
    await check("sign in");
    await page.getByLabel("Token").fill("mm_" + "0".repeat(52));
    await page.getByRole("button", { name: "Sign in" }).click();
    const wrong = await page.getByRole("alert").innerText();
    await check("problem");
    await at(`/mm/ui/sign-in?next=/mm/ui/models/${asked.model}`);
    await page.getByLabel("Token").fill(asked.token);
    await page.keyboard.press("Enter");
    await page.getByRole("button", { name: "Sign out" }).waitFor();
    const [cookie] = await context.cookies();
    return {
      wrong, path: new URL(page.url()).pathname,
      cookie: [cookie.name, cookie.httpOnly, cookie.sameSite],
      read: await page.evaluate(() => document.cookie),
    };
  },
  async alias() {
    await page.getByLabel("Alias", { exact: true }).fill("prod");
    await page.getByLabel("Version", { exact: true }).selectOption("v1");
    await page.getByRole("button", { name: "Move alias" }).click();
    await page.locator("tr", { hasText: "v1" }).getByText("prod", { exact: true }).waitFor();
    await check("model, signed in");
    return { url: page.url() };
  },
  async pull() {
    await at("/mm/ui/pulls");
    await page.getByLabel("Pull from").fill(asked.source);
    await page.getByLabel("Aliases").fill("prod");
    await page.getByRole("button", { name: "Pull", exact: true }).click();
    const row = page.locator("li.pull").first();
    await row.locator("progress").waitFor();
    await page.evaluate(() => { window.sameDocument = true; });
    await check("pulls");
    const values = [];
    for (;;) {
      const status = await row.getAttribute("data-status");
      if (await row.locator("progress").count()) values.push(await row.locator("progress").getAttribute("value"));
      if (values.length === 4) await picture("page-pulls");
      if (status !== "running" && status !== "waiting") break;
      await page.waitForTimeout(300);
    }
    const same = await page.evaluate(() => window.sameDocument === true);
    await row.getByRole("link").click();
    await page.getByRole("heading", { level: 1 }).waitFor();
    return { values: values.map(Number), same, buttons: await page.locator("main form button").count(), at: new URL(page.url()).pathname };
  },
  async remove() {
    await at(`/mm/ui/models/${asked.model}?version=v1`);
    await page.getByText("Remove this version").click();
    await page.getByLabel("Take v1 out of use").check();
    await page.getByRole("button", { name: "Remove" }).click();
    await page.waitForURL((url) => !url.search);
    return { versions: await page.locator("section", { has: page.locator("#versions") }).locator("tbody tr").count() };
  },
  async phone() {
    await page.setViewportSize({ width: 360, height: 740 });
    const wide = [];
    for (const path of ["/mm/ui", `/mm/ui/models/${asked.model}`, "/mm/ui/pulls", "/mm/ui/sign-in", "/mm/v1/docs"]) {
      await at(path);
      if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) wide.push(path);
    }
    await at(`/mm/ui/models/${asked.model}`);
    await picture("page-phone");
    await page.setViewportSize({ width: 1100, height: 800 });
    return { wide };
  },
  async dark() {
    await page.emulateMedia({ colorScheme: "dark" });
    for (const path of ["/mm/ui", `/mm/ui/models/${asked.model}`, "/mm/ui/pulls", "/mm/v1/docs"]) {
      await at(path);
      await check(`${path}, dark`);
      if (path.includes("models/")) await picture("page-dark");
    }
    const back = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    await page.emulateMedia({ colorScheme: "light" });
    await at("/mm/v1/docs");
    await check("docs");
    return { back };
  },
  async signOut() {
    await at("/mm/ui");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("link", { name: "Sign in" }).waitFor();
    return { cookies: (await context.cookies()).length };
  },
};

let failed;
for (const [name, step] of Object.entries(steps)) {
  try {
    seen.steps[name] = await step();
  } catch (error) {
    failed = `${name}: ${error.stack}\n${page.url()}\n${(await page.content()).slice(0, 6000)}`;
    break;
  }
}
seen.failed = failed;
seen.hosts = [...hosts];
await browser.close();
console.log(JSON.stringify(seen));
