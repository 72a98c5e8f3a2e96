// The tables of hosts and links: what the drawing says, and more, for reading. Rows stay, so that nobody loses their place.

import { count, find, make, rate, write } from "./tools.js";

export function showHosts(hosts) {
  fill(find("hosts"), hosts, (host) => {
    const agent = host.agent;
    const drops = agent ? Object.entries(agent.drops) : [];
    const lately = agent?.drops_s ? ` (${count(agent.drops_s)} a second)` : "";
    return [
      agent ? cell(agentText(agent), agent.ready && !agent.problems.length ? "good" : "bad") : cell(host.why, "bad"),
      cell(host.addresses.join("\n")),
      cell([host.subnets.join(" and ") || "none yet", agent ? `lease ${agent.lease}` : ""].filter(Boolean).join("\n")),
      cell(agent ? count(agent.peers) : "–"),
      cell(drops.map(([what, n]) => `${what}: ${count(n)}`).join("\n") + lately || "none", lately ? "bad" : ""),
      cell(host.pods.join("\n") || "none attached"),
    ];
  });
}

function agentText(agent) {
  const head = agent.ready ? `ready (process ${agent.pid})` : `${agent.state} (process ${agent.pid})`;
  return [head, ...agent.problems].join("\n");
}

export function showLinks(links, faults) {
  fill(find("links"), links, (link) => {
    const wrong = (faults[link.name] ?? []).filter((line) => line.startsWith("the link")).length > 0;
    const dropped = link.dropped_s ? `${count(link.dropped)} (${count(link.dropped_s)} a second)` : count(link.dropped);
    return [
      cell(link.up ? "up" : "cut", link.up ? "good" : "bad"),
      cell(count(link.mtu), wrong && link.up ? "bad" : ""),
      cell(rate(link.to_node.bytes_s)),
      cell(rate(link.from_node.bytes_s)),
      cell(`${count(link.to_node.packets)}, ${count(link.from_node.packets)}`),
      cell(dropped, link.dropped_s ? "bad" : ""),
    ];
  });
}

const cell = (text, kind = "") => ({ text, kind });

// Let a table's body have a row for each item, headed by its name, with these cells; written where they have changed.
function fill(body, items, cellsOf) {
  const rows = new Map([...body.rows].map((row) => [row.dataset.name, row]));
  for (const item of items) {
    const cells = cellsOf(item);
    let row = rows.get(item.name);
    if (!row) {
      row = make("tr", { "data-name": item.name }, make("th", { scope: "row" }, item.name));
      row.append(...cells.map(() => make("td")));
      body.append(row);
    }
    cells.forEach(({ text, kind }, i) => {
      const place = row.cells[i + 1];
      write(place, text);
      place.className = kind;
    });
  }
}
