// The page's controls: every one has its key, and the help lists them from here. The session itself is session.js.

import { GAME_KEYS, choice } from "./controls.js";
import { buildHelp } from "./describe.js";
import { $, bringIntoSight, complain, layout, note, realNames, showOverlay, showSliders, showTip } from "./page.js";
import { state, stopUnmasking, turnTo, unmask, whole } from "./page.js";
import { render, upload } from "./protocol.js";
import { branch, goTo, idle, link, replay, run, save, start, turn, visit, wishes } from "./session.js";
import { paintRamp } from "./view.js";

const MAX_UPLOAD = 4 * 2 ** 20; // bytes; the server refuses more, too

// ---- files

async function film(format) {
  note(`Writing the ${format.toUpperCase()}…`);
  try {
    save(await render(state.session, format), format);
    note(`The ${format.toUpperCase()} is in your downloads.`);
  } catch (problem) {
    complain(problem.message);
  }
}

async function useImage(file) {
  if (file.size > MAX_UPLOAD) return complain("This file is larger than 4 MB: choose a smaller image.");
  try {
    start({ from: "image", image: await upload(file) });
    note("Your image, as the tokenizer sees it. Where does it go from here?");
  } catch (problem) {
    complain(problem.message);
  }
}

async function useRecording(file) {
  let content = null;
  try {
    content = JSON.parse(await file.text());
  } catch {
    // told below
  }
  if (content?.format === "genie_fn recording") replay(content);
  else complain("This is not a recording: choose a JSON file saved here.");
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

/** Move a slider or a choice by `step` places, as its own keys would. */
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
  else goTo(state.frame.oldest); // of a recording, only what is kept is known here
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
  run: [["P"], "Run on without keys, or pause", () => run(!wishes.running)],
  step: [["N"], "One frame on, without a key", () => wishes.tap(idle())],
  back: [["Backspace", "["], "One frame back; hold to rewind", () => turn(-1)],
  forward: [["]"], "Forward again, as far as frames are kept", () => turn(1)],
  reset: [["R"], "Back to the start, with the seed in the field", reset],
  branch: [["B"], "Branch: a copy of the world from this frame", () => link.send({ type: "branch" })],
  switch: [["X"], "To the next branch", nextBranch],
  previous: [["J"], "Start from the previous held-out clip", () => startClip(-1)],
  next: [["K"], "Start from the next held-out clip", () => startClip(1)],
  upload: [["U"], "Start from an image of yours", () => $("image").click()],
  game: [["G"], "Play a real CoinRun level beside the dream", () => start({ from: "game", level: whole($("level")) })],
  seed: [["S"], "Start again with another seed", anotherSeed],
  cooler: [["-"], "Lower the temperature", () => nudge("temperature", -1)],
  hotter: [["="], "Raise the temperature", () => nudge("temperature", 1)],
  fewer: [[","], "Fewer MaskGIT steps: faster", () => nudge("steps", -1)],
  more: [["."], "More MaskGIT steps: finer", () => nudge("steps", 1)],
  speed: [["O"], "Another speed limit", () => nudge("speed", 1)],
  confidence: [["C"], "Show how sure the network was of each token", () => toggle("confidence")],
  ids: [["I"], "Show the tokens' numbers", () => toggle("ids")],
  unmask: [["M"], "Watch the last frame being unmasked, step by step", inSlowMotion],
  close: [["Escape"], "Close what is open", () => (stopUnmasking(), complain(""))],
  json: [["D"], "Download the recording as JSON", () => link.send({ type: "record" })],
  mp4: [["V"], "Download an MP4", () => film("mp4")],
  gif: [["A"], "Download a GIF", () => film("gif")],
  load: [["L"], "Replay a recording", () => $("recording").click()],
  help: [["?"], "This help", () => $("help").showModal()],
};
const PLAYING = [
  [["←", "→", "↑", "↓", "Space"], "Game keys, through the measured map; two at once combine"],
  [["1", "2", "…"], "The network's own actions"],
  [["Tab"], "Every control in turn; arrows move a slider that has the focus"],
];
const REPEATING = new Set(["back", "forward", "cooler", "hotter", "fewer", "more"]);
const ALWAYS = new Set(["help", "close"]);
const CLIPS = new Set(["previous", "next"]);
const BY_KEY = {};
for (const [name, [keys]] of Object.entries(COMMANDS)) for (const key of keys) BY_KEY[key.toLowerCase()] = name;

function command(name) {
  const { frame, world, replaying } = state;
  if (!ALWAYS.has(name)) {
    if (!frame || (name === "game" && !world.game) || (CLIPS.has(name) && !world.clips)) return;
    if (replaying) return note("Wait until the recording is dreamed again.");
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
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || ownKey(event.target, event.key)) return;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const action = digit && ((Number(digit[1]) + 9) % 10) + (event.shiftKey ? 10 : 0);
  const direction = realNames(state.world).length ? GAME_KEYS[event.code] : undefined;
  const name = BY_KEY[event.key.toLowerCase()];
  if (direction) wishing(event, { direction });
  else if (digit && action < state.world?.actions) pressAction(event, action);
  else if (name) {
    event.preventDefault();
    if (!event.repeat || REPEATING.has(name)) command(name);
  }
}

function pressAction(event, action) {
  if ($("actions").children[action].disabled) note("Beside the real game only its own keys count: the arrows.");
  else wishing(event, choice(state.world, action));
}

function wishing(event, what) {
  event.preventDefault();
  if (!event.repeat) wishes.press(event.code, what);
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
  addEventListener("keyup", (event) => wishes.release(event.code));
  addEventListener("blur", () => wishes.releaseAll());
  addEventListener("resize", () => layout());
  document.addEventListener("visibilitychange", () => document.hidden && run(false));
  document.addEventListener("mousedown", (event) => {
    if (!event.target.closest("button")) return;
    event.preventDefault(); // a click leaves the focus on the world, so that the space bar still jumps
    document.activeElement.blur();
  });
  for (const button of document.querySelectorAll("[data-do]")) {
    const [keys, text] = COMMANDS[button.dataset.do];
    button.title = `${text} (${keys[0]})`;
    button.setAttribute("aria-keyshortcuts", keys.join(" "));
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
  $("speed").addEventListener("input", () => wishes.limit(Number($("speed").value)));
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
$("dream").addEventListener("pointermove", showTip);
$("dream").addEventListener("pointerleave", () => ($("tip").hidden = true));
paintRamp($("ramp"));
wishes.limit(Number($("speed").value));
buildHelp($("keys"), [...PLAYING, ...Object.values(COMMANDS)]);
layout();
link.open(state.session);
