// The page: hands each look at the lab to its parts.

import * as change from "./change.js";
import { draw, onChoice } from "./drawing.js";
import * as lesson from "./lesson.js";
import { listen } from "./live.js";
import * as packet from "./packet.js";
import { showHosts, showLinks } from "./tables.js";
import { find, make, write } from "./tools.js";

let last = null;

function look(now) {
  last = now;
  document.title = `Lab ${now.name}`;
  write(find("title"), `Lab ${now.name}`);
  write(find("about"), now.about);
  write(find("connection"), "live, once a second");
  showFaults(Object.values(now.faults).flat());
  draw(now.drawing, now.links);
  showHosts(now.hosts);
  showLinks(now.links, now.faults);
  change.showPlaces(now);
  packet.showEnds(now);
  lesson.show(now.lesson, now.lesson_wrong);
}

// In the order in which they are found; those that stay are not told again.
function showFaults(lines) {
  const list = find("faults");
  const shown = lines.length ? lines : ["all is as it was built"];
  if ([...list.children].map((item) => item.textContent).join("\n") !== shown.join("\n")) {
    list.replaceChildren(...shown.map((line) => make("li", lines.length ? {} : { class: "good" }, line)));
  }
}

function end(why) {
  write(find("connection"), "ended: what is below is how it was");
  find("end").hidden = false;
  write(find("end"), why);
  for (const fieldset of document.querySelectorAll("fieldset")) {
    fieldset.disabled = true;
  }
}

change.setUp();
packet.setUp();
lesson.setUp();
onChoice(change.choose);
new ResizeObserver(() => last && draw(last.drawing, last.links)).observe(find("drawing"));
listen({ look, trouble: (line) => write(find("connection"), line), end });
