// What an action does in recorded video, shown beside its button: under the mouse, with the keyboard's focus, and under
// a finger that stays.

import { strip as addressOf } from "./protocol.js";

const WAIT = { mouse: 150, touch: 500, pen: 500 }; // ms that a pointer stays
const GAP = 8; // CSS pixels around the panel

const strips = new Map(); // action → its strip of transitions, an image that is being loaded or was
let shown = null; // the button whose examples are shown

const $ = (id) => document.getElementById(id);

/** The strip of an action; asked for once. */
async function strip(action) {
  if (!strips.has(action)) strips.set(action, addressOf(action).then((src) => Object.assign(new Image(), { src })));
  return strips.get(action);
}

/** A canvas with the n-th frame of a strip. */
function still(image, n, { width, height }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(image, n * width, 0, width, height, 0, 0, width, height);
  return canvas;
}

/** Below the buttons, or above this one where there is no room; never over it. */
function put(panel, button) {
  const box = button.getBoundingClientRect();
  const lowest = innerHeight - panel.offsetHeight - GAP;
  const below = Math.min(button.parentElement.getBoundingClientRect().bottom + GAP, lowest);
  const top = below >= box.bottom ? below : Math.max(box.top - panel.offsetHeight - GAP, GAP);
  const middle = box.left + box.width / 2 - panel.offsetWidth / 2;
  const left = Math.max(Math.min(middle, innerWidth - panel.offsetWidth - GAP), GAP);
  panel.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

async function show(button, action, world) {
  const { text, share, examples } = world.effects[action], pairs = $("examples-pairs");
  hideExamples();
  shown = button;
  button.setAttribute("aria-describedby", "examples-text");
  $("examples-title").textContent = text.replace(/^./, (letter) => letter.toUpperCase());
  $("examples-text").textContent = `${Math.round(100 * share)} % of the recorded transitions`;
  pairs.replaceChildren();
  pairs.style.setProperty("--shape", `${world.width} / ${world.height}`);
  pairs.hidden = !examples;
  for (let n = 0; n < examples; n++) pairs.append(document.createElement("span"));
  $("examples").hidden = false;
  put($("examples"), button);
  if (!examples) return;
  const image = await strip(action);
  await image.decode().catch(() => null);
  if (shown !== button || !image.naturalWidth) return;
  const frame = (n) => still(image, n, world);
  [...pairs.children].forEach((pair, n) => pair.replaceChildren(frame(2 * n), frame(2 * n + 1)));
}

addEventListener("scroll", () => shown && put($("examples"), shown), { passive: true });

/** Hide the examples. */
export function hideExamples() {
  shown?.removeAttribute("aria-describedby");
  shown = null;
  $("examples").hidden = true;
}

/** Forget the strips of another world. */
export function forgetExamples() {
  strips.clear();
  hideExamples();
}

/** Show the examples of `action` beside `button` as long as a pointer or the keyboard's focus is there. */
export function showExamples(button, action, world) {
  if (!world.effects) return;
  let timer = 0;
  const after = (wait) => {
    clearTimeout(timer);
    timer = setTimeout(show, wait, button, action, world);
  };
  const end = () => {
    clearTimeout(timer);
    if (shown === button) hideExamples();
  };
  button.addEventListener("pointerenter", ({ pointerType }) => pointerType === "mouse" && after(WAIT.mouse));
  button.addEventListener("pointerdown", ({ pointerType }) => pointerType !== "mouse" && after(WAIT[pointerType]));
  for (const name of ["pointerup", "pointercancel"]) {
    button.addEventListener(name, ({ pointerType }) => pointerType !== "mouse" && end());
  }
  button.addEventListener("pointerleave", end);
  button.addEventListener("focus", () => button.matches(":focus-visible") && show(button, action, world));
  button.addEventListener("blur", end);
}
