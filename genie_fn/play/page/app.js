// The page's controls and their keys, which the help lists. The session itself is in session.js.

import { choice } from "./controls.js";
import { buildHelp } from "./describe.js";
import { hideExamples } from "./examples.js";
import { actionOf, atPlace, commandKey, directionOf, isForeign, isReserved } from "./keys.js";
import { $, bringIntoSight, complain, layout, note, keyNames, showOverlay, showSliders, showTip } from "./page.js";
import { showAsFile, state, stopUnmasking, turnTo, unmask, whole } from "./page.js";
import { isHere, render, upload } from "./protocol.js";
import { branch, goTo, idle, link, replay, run, save, start, turn, visit, input } from "./session.js";
import { paintRamp } from "./view.js";

const MAX_UPLOAD = 32 * 2 ** 20; // bytes; the server refuses more, too

// ---- files

async function exportVideo(format) {
  note(`Writing the ${format.toUpperCase()}…`);
  try {
    save(await render(state.session, format), format);
    note(`The ${format.toUpperCase()} is in your downloads.`);
  } catch (problem) {
    complain(problem.message);
  }
}

async function useImage(file) {
  if (file.size > MAX_UPLOAD) return complain("This file is larger than 32 MB: choose a smaller image.");
  try {
    start({ from: "image", image: await upload(file) });
    note("This is your image as the tokenizer reconstructs it. Choose an action.");
  } catch (problem) {
    complain(problem.message);
  }
}

async function useRecording(file) {
  let content = null;
  try {
    content = JSON.parse(await file.text());
  } catch {
    // reported below
  }
  if (content?.format === "genie_fn recording") replay(content);
  else complain("This is not a recording: choose a JSON file that this page has saved.");
}

function useFile(file) {
  if (!file || !state.world) return;
  if (file.type === "application/json" || file.name.endsWith(".json")) useRecording(file);
  else useImage(file);
}

// ---- commands

function inSlowMotion() {
  bringIntoSight();
  run(false);
  unmask();
}

function toggle(name) {
  state.view[name] = !state.view[name];
  document.querySelector(`[data-do=${name}]`).setAttribute("aria-pressed", state.view[name]);
  showOverlay();
  bringIntoSight();
}

/** Move a slider or a selection by `step` places. */
function nudge(id, step) {
  const input = $(id);
  if (id === "speed") input.selectedIndex = (input.selectedIndex + step) % input.length;
  else input[step < 0 ? "stepDown" : "stepUp"](Math.abs(step));
  input.dispatchEvent(new Event("input"));
}

function startClip(step = 0) {
  $("clip").value = (whole($("clip")) + step + state.world.clips) % state.world.clips;
  start({ from: "heldout", clip: whole($("clip")) });
}

function reset() {
  const from = branch().start;
  if (from) start(from);
  else goTo(state.frame.oldest); // of a replayed recording, only the kept frames are known here
}

function nextBranch() {
  const place = state.branches.indexOf(branch());
  visit(state.branches[(place + 1) % state.branches.length].session);
}

function anotherSeed() {
  $("seed").value = Math.floor(Math.random() * 10000);
  reset();
}

const COMMANDS = {
  run: [["P"], "Generate frames without keys, or pause", () => run(!input.running)],
  step: [["N"], "Generate one frame without a key", () => input.tap(idle())],
  back: [["Backspace", "["], "One frame back; hold to rewind", () => turn(-1)],
  forward: [["]"], "One frame forward, as far as frames are kept", () => turn(1)],
  reset: [["R"], "Start again, with the seed in the field", reset],
  branch: [["B"], "Branch: copy this session at this frame", () => link.send({ type: "branch" })],
  switch: [["X"], "Go to the next branch", nextBranch],
  previous: [["J"], "Start from the previous held-out clip", () => startClip(-1)],
  next: [["K"], "Start from the next held-out clip", () => startClip(1)],
  upload: [["U"], "Start from your own image", () => $("image").click()],
  game: [["G"], "Play a level of the real game next to the world model", () => start({ from: "game", level: whole($("level")) })],
  seed: [["S"], "Start again with another seed", anotherSeed],
  cooler: [["-"], "Lower the temperature", () => nudge("temperature", -1)],
  hotter: [["="], "Raise the temperature", () => nudge("temperature", 1)],
  fewer: [[","], "Fewer MaskGIT steps: faster", () => nudge("steps", -1)],
  more: [["."], "More MaskGIT steps: finer", () => nudge("steps", 1)],
  speed: [["O"], "Change the speed limit", () => nudge("speed", 1)],
  confidence: [["C"], "Show the probability of each token", () => toggle("confidence")],
  ids: [["I"], "Show the token ids", () => toggle("ids")],
  unmask: [["M"], "Show the MaskGIT steps of this frame in slow motion", inSlowMotion],
  close: [["Escape"], "Close what is open", () => (stopUnmasking(), complain(""), hideExamples())],
  json: [["D"], "Download the recording as JSON", () => link.send({ type: "record" })],
  mp4: [["V"], "Download an MP4", () => exportVideo("mp4")],
  gif: [["A"], "Download a GIF", () => exportVideo("gif")],
  load: [["L"], "Replay a recording", () => $("recording").click()],
  help: [["?"], "This help", () => $("help").showModal()],
};
const PLAYING = [
  [["←", "→", "↑", "↓", "Space"], "Game keys; two at once combine"],
  [["1", "2", "…"], "The actions of the world model"],
  [["Tab"], "Move between the controls; arrow keys move a focused slider"],
];
const REPEATING = new Set(["back", "forward", "cooler", "hotter", "fewer", "more"]);
const ALWAYS = new Set(["help", "close"]);
const CLIPS = new Set(["previous", "next"]);
const STARTING = new Set(["upload", "load", "game"]); // what begins a session, where no frame is shown yet
const BY_KEY = {};
for (const [name, [keys]] of Object.entries(COMMANDS)) for (const key of keys) BY_KEY[key.toUpperCase()] = name;

function command(name) {
  const { frame, world, replaying } = state;
  if (!ALWAYS.has(name)) {
    if (!frame && !(STARTING.has(name) && world)) return;
    if ((name === "game" && !world.game) || (CLIPS.has(name) && !world.clips)) return;
    if (replaying) return note("Wait until the replay ends.");
  }
  COMMANDS[name][2]();
}

// ---- keys and wiring

/** Whether a focused control wants this key for itself. */
function ownKey(target, key) {
  if (target.matches("input:not([type=range]), select")) return key !== "Escape";
  if (target.matches("input[type=range], .scroll")) return /^(Arrow|Page|Home|End)/.test(key);
  return target.matches("button, summary") && (key === " " || key === "Enter");
}

function keydown(event) {
  if (isReserved(event) || $("help").open || ownKey(event.target, event.key)) return;
  const action = actionOf(event, state.world?.actions ?? 0);
  const direction = keyNames(state.world).length ? directionOf(event) : undefined;
  const name = BY_KEY[commandKey(event)];
  if (direction) pressKey(event, { direction });
  else if (action >= 0) pressAction(event, action);
  else if (name) {
    event.preventDefault();
    learn(event);
    if (!event.repeat || REPEATING.has(name)) command(name);
  }
}

// ---- the labels of keys

const typed = new Map(); // command's key → the character that it types on this visitor's layout

/** Remember which character a key types where the layout has another script, and show it from now on. */
function learn({ code, key }) {
  const character = key.toUpperCase();
  if (!isForeign(key) || label(atPlace(code)) === character) return;
  typed.set(atPlace(code), character);
  showKeys();
}

const label = (key) => typed.get(key) ?? key;

function showKeys() {
  for (const button of document.querySelectorAll("[data-do]")) {
    const [keys, text] = COMMANDS[button.dataset.do];
    button.title = `${text} (${label(keys[0])})`;
    button.setAttribute("aria-keyshortcuts", keys.map(label).join(" "));
  }
  $("help-key").textContent = label("?");
  const rows = [...PLAYING, ...Object.values(COMMANDS)];
  buildHelp($("keys"), rows.map(([keys, text]) => [keys.map(label), text]));
}

function pressAction(event, action) {
  const button = document.querySelector(`#actions [data-action="${action}"]`);
  if (!button) note("This action does not occur in the world's data.");
  else if (button.disabled) note("Next to the real game only its own keys can be used: the arrows.");
  else pressKey(event, choice(state.world, action));
}

function pressKey(event, what) {
  event.preventDefault();
  if (!event.repeat) input.press(event.code, what);
}

function repeatWhilePressed(button) {
  let timer = 0;
  button.addEventListener("pointerdown", () => (timer = setTimeout(again, 400)));
  const again = () => {
    command(button.dataset.do);
    timer = setTimeout(again, 80);
  };
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    button.addEventListener(end, () => clearTimeout(timer));
  }
}

function wireControls() {
  addEventListener("keydown", keydown);
  addEventListener("keyup", (event) => input.release(event.code));
  addEventListener("blur", () => input.releaseAll());
  addEventListener("resize", () => layout());
  document.addEventListener("visibilitychange", () => document.hidden && run(false));
  document.addEventListener("mousedown", (event) => {
    if (!event.target.closest("button")) return;
    event.preventDefault(); // a click leaves the focus on the world, so that the space bar still jumps
    document.activeElement.blur();
  });
  for (const button of document.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => command(button.dataset.do));
    if (REPEATING.has(button.dataset.do)) repeatWhilePressed(button);
  }
  for (const slider of document.querySelectorAll("input[type=range]")) {
    slider.addEventListener("pointerup", () => slider.blur());
  }
  $("speed").addEventListener("change", () => $("speed").matches(":focus-visible") || $("speed").blur());
  $("alert-close").addEventListener("click", () => complain(""));
}

function wireFields() {
  $("timeline").addEventListener("input", () => goTo(Number($("timeline").value)));
  $("unmask").addEventListener("input", () => turnTo(Number($("unmask").value)));
  $("speed").addEventListener("input", () => input.limit(Number($("speed").value)));
  for (const id of ["temperature", "steps"]) {
    $(id).addEventListener("input", () => {
      showSliders();
      link.send({ type: "settings", temperature: Number($("temperature").value), steps: Number($("steps").value) });
    });
  }
  const enter = { clip: () => {}, seed: reset, level: COMMANDS.game[2] };
  for (const [id, begin] of Object.entries(enter)) {
    $(id).addEventListener("keydown", ({ key }) => {
      if (key === "Enter") begin();
      if (key === "Enter" || key === "Escape") $(id).blur();
    });
  }
  $("clip").addEventListener("change", () => startClip());
  for (const id of ["image", "recording"]) {
    $(id).addEventListener("change", () => {
      useFile($(id).files[0]);
      $(id).value = ""; // so that the same file can be chosen again
    });
  }
}

function wireDrops() {
  const file = (transfer) => [...(transfer?.files ?? [])][0];
  addEventListener("paste", (event) => file(event.clipboardData) && useFile(file(event.clipboardData)));
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget || ($("drop").hidden = true));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    useFile(file(event.dataTransfer));
  });
}

wireControls();
wireFields();
wireDrops();
$("frame").addEventListener("pointermove", showTip);
$("frame").addEventListener("pointerleave", () => ($("tip").hidden = true));
paintRamp($("ramp"));
input.limit(Number($("speed").value));
showKeys();
layout();
if (isHere) showAsFile();
link.open(state.session);
