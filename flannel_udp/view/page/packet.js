// A packet's way: sent or only asked about, then replayed step by step, here and in the drawing.

import { mark } from "./drawing.js";
import { find, make, offer, post, write } from "./tools.js";

const EACH_MS = 1800;
const steps = find("steps");
let way = [];
let at = -1;
let playing = 0;

export function setUp() {
  find("send").addEventListener("click", () => ask("follow", {}));
  find("ask").addEventListener("click", () => ask("foretell", packet()));
  find("back").addEventListener("click", () => { pause(); go(at - 1); });
  find("next").addEventListener("click", () => { pause(); go(at + 1); });
  find("play").addEventListener("click", () => (playing ? pause() : play()));
}

export function showEnds(look) {
  const pods = look.links.map((link) => link.name).filter((name) => name.includes("/"));
  const hosts = look.hosts.map((host) => host.name);
  offer(find("from"), [...pods, ...hosts]);
  offer(find("ends"), [...pods, ...hosts]); // a list that is open would be closed by new ones each second
  const to = find("to");
  if (!to.value && pods.length > 1) {
    to.value = pods.find((name) => name.split("/")[0] !== pods[0].split("/")[0]) ?? pods[1];
  }
}

// What is said of the packet beside its ends, as texts.
function packet() {
  const said = { proto: find("proto").value, df: find("df").checked };
  for (const name of ["size", "ttl"]) {
    said[name] = find(name).value;
  }
  return said.proto === "icmp" ? { ...said, proto: "" } : { ...said, dport: find("dport").value };
}

async function ask(path, more) {
  pause();
  write(find("packet-end"), "under way …");
  const answer = await post(path, { from: find("from").value, to: find("to").value.trim(), ...more });
  way = answer.steps ?? [];
  write(find("packet-command"), answer.command ?? "");
  write(find("packet-end"), answer.error ? `failed: ${answer.error}` : answer.end);
  find("packet-end").classList.toggle("error", Boolean(answer.error));
  find("replay").hidden = way.length === 0;
  steps.replaceChildren(...way.map(item));
  at = -1;
  go(way.length ? 0 : -1);
}

function item(step) {
  const lines = make("ul", { class: "lines" }, ...step.lines.map((line) => make("li", {}, line)));
  const element = make("li", { class: step.good ? "" : "bad" }, make("div", { class: "title" }, step.title), lines);
  if (step.headers.length) {
    element.append(make("details", {}, make("summary", {}, "byte by byte"), ...step.headers.map(table)));
  }
  return element;
}

function table(header) {
  const rows = header.fields.map((field) =>
    make("tr", {},
      make("td", {}, String(field.offset)),
      make("td", {}, field.hex ?? "??"),
      make("td", {}, `${field.name}: ${field.value}${field.meaning ? ` (${field.meaning})` : ""}`)));
  const head = ["At", "Bytes", "Field"].map((text) => make("th", { scope: "col" }, text));
  return make("table", { class: "bytes" },
    make("caption", {}, header.name), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

// Be at a step, the first or the last one where there is no such one.
function go(index) {
  at = Math.max(Math.min(index, way.length - 1), way.length ? 0 : -1);
  [...steps.children].forEach((element, i) => {
    if (i === at) {
      element.setAttribute("aria-current", "step");
    } else {
      element.removeAttribute("aria-current");
    }
  });
  mark(way[at]?.node ?? "", way[at]?.good ?? true);
  write(find("position"), at < 0 ? "" : `step ${at + 1} of ${way.length}: ${way[at].title}`);
}

function play() {
  if (at === way.length - 1) {
    go(0);
  }
  playing = setInterval(() => {
    go(at + 1);
    if (at >= way.length - 1) {
      pause();
    }
  }, EACH_MS);
  write(find("play"), "Pause");
}

function pause() {
  clearInterval(playing);
  playing = 0;
  write(find("play"), "Play");
}
