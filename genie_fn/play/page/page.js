// The state of this tab, and what the page shows of it: world, frame, overlays, unmasking, figures, branches.

import { buildActions, buildArrows, buildTable, describeMap, describeWorld } from "./describe.js";
import { canonical, choice, pad } from "./controls.js";
import { forgetExamples, showExamples } from "./examples.js";
import { isHere } from "./protocol.js";
import { describe, fit, knownAfter, paint, paintOverlay, paintSpark } from "./view.js";

const READY = { compiling: "preparing: slower for a minute", compiled: "fast", eager: "slow", local: "in this page" };
const PAUSE = 1000; // ms: frames further apart do not count for the frame rate
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const touch = matchMedia("(pointer: coarse)");
const KEPT = ["note", "compare", "status", "transport", "pads"]; // what stays in sight below the canvas
const LEGENDS = ["legend-confidence", "legend-ids", "legend-unmask"];

/** This tab's storage; undefined where the browser denies it, and where sessions end with the page. */
function storage() {
  if (isHere) return undefined;
  try {
    return sessionStorage;
  } catch {
    return undefined;
  }
}

const stored = JSON.parse(storage()?.getItem("genie_fn") ?? "{}");
export const state = {
  world: null,
  frame: null, // the frame shown, decoded
  asked: null, // the request that the next frame answers, and when it was made
  next: null, // the latest request made meanwhile: at most one waits, so that nothing piles up
  session: stored.session ?? "",
  branches: stored.branches ?? [], // {session, name, start}
  replaying: 0, // frames of the recording that is being replayed
  psnr: [], // by frame
  visitors: 1,
  full: "", // the message of a server whose places are all taken
  gone: "", // its message about a session that it no longer keeps
  ended: false, // whether it ended this connection: the next request opens another
  view: { confidence: false, ids: false, known: null }, // known: the MaskGIT step that is shown
};

/** Keep what a reload or a lost connection needs. */
export function remember() {
  storage()?.setItem("genie_fn", JSON.stringify({ session: state.session, branches: state.branches }));
}

export const $ = (id) => document.getElementById(id);

/** The whole number in a field, within its bounds; the field shows it, too. */
export function whole(input) {
  const most = input.max === "" ? 10 ** 9 : Number(input.max);
  input.value = Math.min(Math.max(Math.floor(Number(input.value)) || 0, 0), most);
  return Number(input.value);
}

/** Show a sentence about what just happened; screen readers read it out. */
export const note = (text) => ($("note").textContent = text);

/** Show an error message, until `complain("")`. */
export function complain(text, about = "") {
  $("alert").hidden = !text;
  $("alert").dataset.about = about;
  $("alert-text").textContent = text;
}

/** Scroll the frame into view: on a phone the settings are far below it. */
export function bringIntoSight() {
  if ($("frame").getBoundingClientRect().bottom < 100) scrollTo({ top: 0 });
}

/** Leave out what a page that holds its world does not have: a connection, and MP4 files. */
export function showAsFile() {
  note("The world is being loaded…");
  for (const hidden of [$("link"), $("trip").parentElement, document.querySelector("[data-do=mp4]")]) hidden.hidden = true;
}

export function showLink(kind, text) {
  $("link").dataset.state = kind;
  $("link-text").textContent = text;
}

export function showReady(ready) {
  $("ready").textContent = READY[ready];
  $("ready").dataset.state = ready;
}

/** Let browsers install a page that is served as an application. A token is another at the next start of play.py. */
function offerInstallation({ name }) {
  if (!location.protocol.startsWith("http") || location.search) return;
  const icon = document.querySelector("link[rel=icon]");
  const manifest = {
    name,
    display: "standalone",
    start_url: location.href,
    scope: new URL(".", location.href).href,
    icons: [{ src: icon.href, sizes: "any", type: "image/svg+xml" }],
  };
  const content = new Blob([JSON.stringify(manifest)], { type: "application/manifest+json" });
  const link = $("manifest") ?? Object.assign(document.createElement("link"), { id: "manifest", rel: "manifest" });
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(content);
  document.head.append(link);
}

const AWAKE = 60_000; // ms after a frame for which the screen stays on
let lock = null, sleeping = 0; // the promise of a lock, null where none is held; a timer

/** Keep the screen of a phone on while frames are generated, where the browser allows it. */
export async function stayAwake() {
  clearTimeout(sleeping);
  sleeping = setTimeout(async () => (await lock)?.release(), AWAKE);
  if (lock || !navigator.wakeLock || document.hidden) return;
  lock = navigator.wakeLock.request("screen").catch(() => null); // refused: not asked for again
  (await lock)?.addEventListener("release", () => (lock = null));
}

/** The names of the game keys: those of what actions do, where recorded actions do not say it, or of these. */
export function keyNames(world) {
  const keys = Object.keys(world?.keys ?? {});
  if (keys.length) return keys;
  if (world?.kind === "recorded") return world.names.map((name, n) => (world.occurring.includes(n) ? name : ""));
  return world?.map ? world.names : [];
}

export function showWorld(world, input) {
  document.title = `${world.name}: genie_fn`;
  $("world").textContent = describeWorld(world);
  offerInstallation(world);
  $("map").textContent = describeMap(world);
  forgetExamples();
  buildActions($("actions"), world, (button, action) => {
    pad(button, choice(world, action), input);
    showExamples(button, action, world);
  });
  buildArrows($("arrows"), keyNames(world), (button, direction) => pad(button, { direction }, input));
  buildTable($("map-table"), world);
  $("clip").max = Math.max(world.clips - 1, 0);
  $("from-clip").hidden = !world.clips;
  $("from-game").hidden = !world.game;
  showIntroduction(world);
}

/** Say what can be done; with `game`, next to the real game. */
export function showIntroduction(world, game = false) {
  const count = world.occurring.length;
  const numbered = count <= 10 && world.occurring.at(-1) === count - 1;
  const keys = numbered ? `1 to ${count}` : "a button";
  const press = touch.matches ? "a button" : keyNames(world).length ? `an arrow key or ${keys}` : keys;
  if (game) note("The same keys control both: the real game on the left, the world model on the right.");
  else note(`Press ${press}. The world model generates the next frame.`);
}

export function showSettings({ temperature, steps }) {
  $("temperature").value = temperature;
  $("steps").max = Math.max(25, steps);
  $("steps").value = steps;
  showSliders();
}

export function showSliders() {
  $("temperature-out").value = Number($("temperature").value).toFixed(2);
  $("steps-out").value = $("steps").value;
}

export function showRunning(running) {
  const button = document.querySelector("[data-do=run]");
  button.setAttribute("aria-pressed", running);
  button.querySelector("use").setAttribute("href", running ? "#i-pause" : "#i-run");
  button.querySelector("span").textContent = running ? "Pause" : "Run";
}

export function showFrame() {
  const { frame, world } = state;
  paint($("frame"), frame.rgb, frame);
  if ($("real-game").hidden === frame.game) layout();
  if (frame.game) showComparison();
  const thumb = document.querySelector("#branches [aria-pressed=true] canvas");
  if (thumb) paint(thumb, frame.rgb, frame);
  Object.assign($("timeline"), { min: frame.oldest, max: frame.newest, disabled: frame.oldest === frame.newest });
  $("timeline").value = frame.frame;
  $("number").textContent = frame.frame === frame.newest ? frame.frame : `${frame.frame} of ${frame.newest}`;
  showChosen(frame, world);
  showOverlay();
}

function showChosen({ action, recorded, game }, world) {
  const choose = (button, on) => button.classList.toggle("chosen", on);
  for (const button of $("actions").children) {
    choose(button, Number(button.dataset.action) === action);
    button.disabled = game && world.kind === "latent"; // the real game has only its own keys
  }
  const selecting = (name) => world.keys[name] === action;
  const name = recorded === null ? Object.keys(world.keys).find(selecting) : world.names[recorded];
  const parts = canonical(name ?? "").split("+");
  for (const button of $("arrows").children) choose(button, parts.includes(button.dataset.direction));
}

function showComparison() {
  const { frame, psnr } = state;
  paint($("game"), frame.game_rgb, frame);
  const decibel = (value) => (value === null ? "–" : value.toFixed(1));
  $("psnr").textContent = decibel(frame.psnr);
  $("psnr-mean").textContent = decibel(frame.mean_psnr);
  paintSpark($("spark"), Array.from(psnr.slice(frame.oldest), (value) => value ?? null));
}

/** Draw what is switched on over the frame, with its legend. */
export function showOverlay() {
  const { frame, view } = state;
  const shown = [view.confidence, view.ids, view.known !== null];
  LEGENDS.forEach((id, i) => ($(id).hidden = !shown[i]));
  $("legend").hidden = !shown.includes(true);
  $("frame").parentElement.classList.toggle("marked", view.confidence || view.ids);
  if (!shown.includes(true)) $("tip").hidden = true;
  if (!frame) return;
  const legible = paintOverlay($("overlay"), frame, view);
  const mean = frame.probability.reduce((sum, p) => sum + p, 0) / frame.probability.length / 255;
  $("legend-mean").textContent = frame.action === null ? "(a start frame)" : `on average ${Math.round(mean * 100)} %`;
  const colour = view.confidence ? "" : " and that number's colour", point = legible ? "" : " Point at a cell to read it.";
  $("legend-ids").textContent = `Each cell shows its token's number in the codebook${colour}.${point}`;
  if (view.known !== null) showUnmasking(frame, view.known);
}

function showUnmasking(frame, known) {
  Object.assign($("unmask"), { max: frame.steps, value: known });
  const sure = `${knownAfter(frame, known)} of ${frame.ids.length} tokens known`;
  $("unmask-text").value = `step ${known} of ${frame.steps}: ${sure}`;
}

let unmasking = 0; // the timer

/** Play the last frame's MaskGIT steps one after another. */
export function unmask() {
  if (!state.frame) return;
  if (state.frame.action === null) return note("This is the start frame, which was not generated: choose an action first.");
  clearInterval(unmasking);
  showStep(calm.matches ? 1 : 0); // where motion is not wanted, only the slider turns the steps
  if (!calm.matches) unmasking = setInterval(nextStep, Math.min(Math.max(5000 / state.frame.steps, 150), 700));
}

function nextStep() {
  showStep(state.view.known + 1);
  if (state.view.known >= state.frame.steps) clearInterval(unmasking);
}

/** Show the frame as it was known after a step; null: as it is. */
export function showStep(step) {
  state.view.known = step;
  showOverlay();
}

export function stopUnmasking() {
  clearInterval(unmasking);
  if (state.view.known !== null) showStep(null);
}

/** Show a step that was chosen on the slider. */
export function turnTo(step) {
  clearInterval(unmasking);
  showStep(step);
}

/** Describe the token under the pointer, while tokens are shown. */
export function showTip(event) {
  const { frame, view } = state, tip = $("tip");
  tip.textContent = frame && (view.confidence || view.ids) ? describe($("frame"), frame, event) : "";
  tip.hidden = !tip.textContent;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  tip.style.transform = `translate(${x}px, ${event.clientY + 16}px)`;
}

/** Fit the canvases to the window: whole multiples of their pixels, and the controls still in sight. */
export function layout() {
  const { frame, view } = state;
  const game = Boolean(frame?.game), stage = $("stage");
  $("real-game").hidden = $("compare").hidden = !game;
  $("generated").querySelector("figcaption").hidden = !game;
  const beside = getComputedStyle(stage).display === "grid"; // on a phone on its side, the controls
  const below = beside ? [] : KEPT;
  const taken = below.reduce((sum, id) => sum + ($(id).offsetHeight ? $(id).offsetHeight + 12 : 0), game ? 48 : 24);
  const room = {
    width: (beside ? stage.clientWidth / 2 : stage.clientWidth) - (game ? 16 : 0),
    height: Math.max(innerHeight - stage.offsetTop - taken, Math.min(innerHeight * 0.42, 360)),
  };
  fit(game ? [$("game"), $("frame")] : [$("frame")], frame ?? { width: 64, height: 64 }, room);
  for (const side of ["width", "height"]) $("overlay").style[side] = $("frame").style[side];
  if (frame) paintOverlay($("overlay"), frame, view);
}

const recent = { ms: [], trip: [], gap: [], last: -Infinity };

/** Measure a generated frame that was requested at time `at`: medians of the last 30. */
export function measure({ ms }, at) {
  const now = performance.now(), gap = now - recent.last;
  recent.last = now;
  if (gap < PAUSE) recent.gap.push(gap);
  recent.ms.push(ms);
  recent.trip.push(now - at);
  for (const list of [recent.ms, recent.trip, recent.gap]) list.splice(0, list.length - 30);
  const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
  $("ms").textContent = Math.round(median(recent.ms));
  $("trip").textContent = Math.round(median(recent.trip));
  if (recent.gap.length) $("fps").textContent = Math.round(1000 / median(recent.gap));
}

/** A chip with a small picture for each branch, once there are two. */
export function showBranches(visit) {
  const { branches, session } = state;
  const place = $("branches");
  place.hidden = branches.length < 2;
  const pictures = new Map([...place.children].map((chip) => [chip.dataset.session, chip.querySelector("canvas")]));
  place.replaceChildren(
    ...branches.map((branch) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.dataset.session = branch.session;
      chip.setAttribute("aria-pressed", branch.session === session);
      chip.append(pictures.get(branch.session) ?? document.createElement("canvas"), branch.name);
      chip.addEventListener("click", () => visit(branch.session));
      return chip;
    }),
  );
}
