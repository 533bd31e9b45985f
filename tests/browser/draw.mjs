// Carries out steps on a page in headless Chromium. Standard input: JSON with packages
// (the folder of package.json), chromium, flags, url and steps; standard output: JSON
// with what each "read" found, all addresses asked for, and errors on the page.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { packages, chromium, flags, url, steps } = JSON.parse(readFileSync(0, "utf8"));
const puppeteer = createRequire(`${packages}/package.json`)("puppeteer-core");
const browser = await puppeteer.launch({ executablePath: chromium, args: flags });
const page = await browser.newPage();
await page.setViewport({ width: 1040, height: 700, hasTouch: true });
const requests = [];
const errors = [];
page.on("request", (request) => requests.push(request.url()));
page.on("pageerror", (error) => errors.push(String(error)));
page.on("console", (message) => {
  if (["error", "warn"].includes(message.type())) errors.push(message.text());
});

/** Strokes as lists of [x, y] in parts of the paper, by mouse or by touch. */
async function draw(strokes, { down, move, up }) {
  const paper = await (await page.$("#paper")).boundingBox();
  const place = ([x, y]) => [paper.x + x * paper.width, paper.y + y * paper.height];
  for (const [first, ...others] of strokes) {
    await down(...place(first));
    for (const point of others) await move(...place(point));
    await up();
  }
}

const { mouse, touchscreen } = page;
const byMouse = {
  down: async (x, y) => (await mouse.move(x, y), await mouse.down()),
  move: (x, y) => mouse.move(x, y),
  up: () => mouse.up(),
};
const byTouch = {
  down: (x, y) => touchscreen.touchStart(x, y),
  move: (x, y) => touchscreen.touchMove(x, y),
  up: () => touchscreen.touchEnd(),
};

function read() {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const values = (canvas) => Array.from(canvas.image);
  const seen = document.querySelector("#seen");
  return {
    verdict: document.querySelector("#verdict").textContent,
    seen: seen.hidden ? null : values(seen.querySelector("canvas")),
    signs: all(".sign").map((row) => ({
      name: row.querySelector(".name").value,
      best: row.classList.contains("best"),
      images: all(".examples canvas", row).map(values),
      probability: row.querySelector(".guess").hidden ? null : row.querySelector("progress").value,
    })),
  };
}

/** Another learner than that of the page, by the page's learner.js. */
async function adapt(url, support, labels, query) {
  const { Learner } = await import("./learner.js");
  const rows = (list) => list.map((row) => Float32Array.from(row));
  return (await Learner.load(url)).probabilities(rows(support), labels, rows(query));
}

const doing = {
  draw: (strokes) => draw(strokes, byMouse),
  touch: (strokes) => draw(strokes, byTouch),
  click: (selector) => page.click(selector),
  teach: async (row) => (await page.$$(".teach"))[row].click(),
  type: async ([selector, text]) => {
    await page.click(selector, { count: 3 });
    await page.keyboard.type(text);
  },
  screenshot: (path) => page.screenshot({ path }),
  adapt: async (given) => reads.push(await page.evaluate(adapt, ...given)),
  read: async () => reads.push(await page.evaluate(read)),
};

const reads = [];
try {
  await page.goto(url);
  await page.waitForSelector(".sign");
  for (const [what, value] of steps) {
    await page.waitForSelector('#verdict[aria-busy="false"]');
    await doing[what](value);
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify({ reads, requests, errors }));
