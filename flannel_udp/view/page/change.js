// Faults and healing: each button stands for a command, which is shown with what it said.

import { find, make, offer, post, write } from "./tools.js";

const where = find("where");
const buttons = [...document.querySelectorAll("[data-change]")];
const ofAgents = buttons.filter((button) => button.dataset.change.endsWith(" host"));
let hosts = [];
let running = false;

export function setUp() {
  for (const button of buttons) {
    button.addEventListener("click", () => run(button));
  }
  where.addEventListener("change", nameButtons);
}

export function showPlaces(look) {
  hosts = look.hosts.map((host) => host.name);
  offer(where, look.links.map((link) => link.name));
  for (const button of document.querySelectorAll(".etcd")) {
    button.hidden = !look.etcd;
  }
  nameButtons();
}

export function choose(node) {
  if ([...where.options].some((option) => option.value === node)) {
    where.value = node;
    nameButtons();
  }
}

const hostOf = (node) => node.split("/")[0];

function nameButtons() {
  for (const element of document.querySelectorAll("[data-link-name]")) {
    write(element, where.value);
  }
  for (const element of document.querySelectorAll("[data-host-name]")) {
    write(element, hostOf(where.value));
  }
  for (const button of ofAgents) {
    button.hidden = !hosts.includes(hostOf(where.value)); // a router has none
  }
}

async function run(button) {
  if (running) {
    return; // said by #busy; a button that were disabled would lose the keyboard's place
  }
  const values = { link: where.value, host: hostOf(where.value), bytes: find("bytes").value };
  const [command, ...words] = button.dataset.change.split(" ");
  setRunning(true, button.textContent.trim());
  const done = await post("change", { command, words: words.map((word) => values[word] ?? word) });
  setRunning(false);
  tell(done);
}

function setRunning(now, what = "") {
  running = now;
  write(find("busy"), now ? `at work: ${what} …` : "");
  for (const button of buttons) {
    button.setAttribute("aria-disabled", String(now));
  }
}

function tell({ command, lines = [], error }) {
  const said = lines.map((line) => make("li", {}, line));
  if (error) {
    said.push(make("li", { class: "error" }, `failed: ${error}`));
  }
  find("done").prepend(make("li", {}, make("div", { class: "command" }, command ?? ""), make("ul", {}, ...said)));
}
