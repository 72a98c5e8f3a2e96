// The drawing: fetched when it has changed or the window has another width; rates and the packet are put into it.

import { find, rate } from "./tools.js";

const SVG = "http://www.w3.org/2000/svg";
const place = find("drawing");
let shown = "";
let marked = { node: "", good: true };
let links = [];

// Show the drawing of this number, with what passes the links.
export async function draw(number, rows) {
  links = rows;
  const width = place.clientWidth;
  const wanted = `${number} ${width}`;
  if (shown !== wanted) {
    shown = wanted;
    const response = await fetch(`drawing?width=${width}`).catch(() => null);
    if (!response?.ok) {
      shown = ""; // the next look asks again
      return;
    }
    const text = await response.text();
    if (shown !== wanted) {
      return; // another one has been asked for meanwhile
    }
    const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
    place.replaceChildren(document.importNode(parsed.documentElement, true));
    mark(marked.node, marked.good);
  }
  for (const link of links) {
    show(link);
  }
}

function show(link) {
  const text = place.querySelector(`[data-rates="${link.name}"]`);
  const cable = place.querySelector(`[data-link="${link.name}"]`);
  const busy = (link.to_node.bytes_s ?? 0) + (link.from_node.bytes_s ?? 0) > 0;
  for (const element of [text, cable]) {
    element?.classList.toggle("busy", busy);
  }
  if (text) {
    text.textContent = `↓ ${rate(link.to_node.bytes_s)}  ↑ ${rate(link.from_node.bytes_s)}`;
  }
}

// Mark the node that a packet is at, and move the packet there; "" for nowhere.
export function mark(node, good = true) {
  marked = { node, good };
  for (const element of place.querySelectorAll("[data-node]")) {
    element.classList.toggle("now", element.dataset.node === node);
    element.classList.toggle("bad", element.dataset.node === node && !good);
  }
  const box = place.querySelector(`[data-node="${CSS.escape(node)}"] rect`);
  const token = place.querySelector("#token") ?? newToken();
  token?.classList.toggle("bad", !good);
  if (token && box) {
    const x = Number(box.getAttribute("x")) + Number(box.getAttribute("width")) - 18;
    const y = Number(box.getAttribute("y")) + Number(box.getAttribute("height")) / 2;
    token.style.transform = `translate(${x}px, ${y}px)`;
  }
  token?.toggleAttribute("hidden", !box);
}

function newToken() {
  const picture = place.querySelector("svg");
  const token = document.createElementNS(SVG, "circle");
  token.id = "token";
  token.setAttribute("r", "8");
  picture?.append(token);
  return picture && token;
}

// Call `chosen` with the name of a node that somebody clicks on.
export function onChoice(chosen) {
  place.addEventListener("click", (event) => {
    const node = event.target.closest("[data-node]");
    if (node) {
      chosen(node.dataset.node);
    }
  });
}
