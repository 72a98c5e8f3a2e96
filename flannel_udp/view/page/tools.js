// What several parts of the page need.

export const find = (id) => document.getElementById(id);

// Return an element: its attributes, then its children, strings among them.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Write a text only where it has changed: what reads the page aloud hears of changes.
export function write(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

// Let a list of choices be these, and keep what is chosen if it is still there.
export function offer(select, names) {
  if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) {
    return;
  }
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(chosen)) {
    select.value = chosen;
  }
}

// Return bytes a second as bits a second, in a few characters.
export function rate(bytes) {
  if (bytes === null) {
    return "–";
  }
  let bits = bytes * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]) {
    if (bits < 1000 || unit === "Gbit/s") {
      return `${bits < 10 && bits > 0 ? bits.toFixed(1) : Math.round(bits)} ${unit}`;
    }
    bits /= 1000;
  }
}

export const count = (number) => number.toLocaleString("en");

// Ask for something to be done. Returns the answer, or an object with `error`, one line.
export async function post(path, asked) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
    });
    return await response.json();
  } catch {
    return { error: "the page's server does not answer: is flannel-udp lab view still running?" };
  }
}

// Return a text as elements: paragraphs between empty lines, indented ones as they are, words between ` as code.
export function prose(text) {
  const blocks = text.split(/\n\s*\n/).filter((block) => block.trim());
  return blocks.map((block) => {
    if (block.replace(/^\n+/, "").startsWith("    ")) {
      return make("pre", { tabindex: "0" }, block.replace(/^ {4}/gm, "").trimEnd());
    }
    const parts = block.trim().replace(/\n/g, " ").split("`");
    return make("p", {}, ...parts.map((part, i) => (i % 2 ? make("code", {}, part) : part)));
  });
}
