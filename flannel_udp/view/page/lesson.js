// A lab's lesson: how far it is, and its check, hints and solution at a click.

import { find, make, post, prose, write } from "./tools.js";

const STATES = { done: "done", open: "to be done now", later: "later" };
const buttons = [...document.querySelectorAll("[data-learn]")];
let shown = "";
let running = false;

export function setUp() {
  for (const button of buttons) {
    button.addEventListener("click", () => run(button.dataset.learn));
  }
}

// Show how far it is, and what is wrong with its file, in words; nothing for a lab without a lesson.
export function show(progress, wrong = null) {
  find("lesson").hidden = !progress && !wrong;
  find("lesson-wrong").hidden = !wrong;
  write(find("lesson-wrong"), wrong ? `The lesson cannot be read just now: ${wrong}` : "");
  if (!progress || JSON.stringify(progress) === shown) {
    return;
  }
  shown = JSON.stringify(progress);
  find("lesson").lang = progress.language;
  write(find("lesson-title"), `${progress.number === null ? "" : `Lesson ${progress.number}: `}${progress.title}`);
  find("lesson-text").replaceChildren(...prose(progress.text));
  find("lesson-steps").replaceChildren(...progress.steps.map((step) =>
    make("li", { class: step.state }, `${step.name}: ${STATES[step.state]}`)));
  const open = progress.steps.find((step) => step.state === "open");
  write(find("lesson-step"), open ? `Step ${progress.steps.indexOf(open) + 1} of ${progress.steps.length}: ${open.name}` : "All done");
  find("lesson-task").replaceChildren(...prose(open ? open.task : ""));
}

async function run(what) {
  if (running) {
    return; // said by #lesson-found
  }
  setRunning(true);
  find("lesson-found").replaceChildren(...prose("under way …"));
  const { command, found, error } = await post("learn", { what });
  setRunning(false);
  write(find("lesson-command"), command ?? "");
  const told = found ? telling[what](found) : [];
  find("lesson-found").replaceChildren(...told, ...(error ? [make("p", { class: "error" }, `failed: ${error}`)] : []));
}

function setRunning(now) {
  running = now;
  for (const button of buttons) {
    button.setAttribute("aria-disabled", String(now));
  }
}

// What the answer of each command is as elements.
const telling = {
  check(progress) {
    show({ ...progress, advanced: null, steps: progress.steps.map((step) => ({ ...step, missing: [], mistake: null })) });
    const advanced = progress.steps.find((step) => step.name === progress.advanced);
    const open = progress.steps.find((step) => step.state === "open");
    if (advanced) {
      return [...prose(`The step ${advanced.name} is done.`), ...prose(advanced.learnt ?? "")];
    }
    if (!open) {
      return prose("All steps are done.");
    }
    const missing = open.missing.map((line) => make("li", {}, ...prose(line)));
    return [...prose("Not yet:"), make("ul", {}, ...missing), ...prose(open.mistake ?? "")];
  },
  hint: (hint) => [...prose(`Hint ${hint.number} of ${hint.of}:`), ...prose(hint.text)],
  solve: (solution) => [
    ...solution.commands.map((ran) => make("pre", { tabindex: "0" }, `$ ${ran.command}\n${ran.output}`)),
    ...telling.check(solution.progress),
  ],
};
