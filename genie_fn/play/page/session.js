// The session in this tab: requests to the server, and its answers.

import { canonical, choice, keyChoice, player } from "./controls.js";
import { $, bringIntoSight, complain, layout, measure, note, keyNames, remember, showBranches } from "./page.js";
import { showFrame, showIntroduction, showLink, showReady, showRunning, showSettings, showWorld } from "./page.js";
import { state, stayAwake, stopUnmasking, whole } from "./page.js";
import { connect, isHere } from "./protocol.js";

export const input = player({
  ready: () => state.frame && !state.asked && !state.replaying,
  send: (choice) => ask({ type: "act", ...choice }),
  names: () => keyNames(state.world),
  key: (n) => keyChoice(state.world, n),
  idle,
});
const answers = { hello, status, branched, replayed, recording, error, expired, full };
export const link = connect({ ...answers, frame, closedFull, lost, refused });

// ---- asking

/** Send a request whose answer is a frame; while another answer is due, only the latest request is kept. */
function ask(message, resumed = false) {
  if (state.asked) {
    if (state.next?.type !== "start") state.next = message;
  } else if (link.send(message)) {
    state.asked = { message, resumed, at: performance.now() };
    document.body.classList.add("waiting");
  } else if (state.ended) {
    state.ended = false;
    link.open();
  }
}

/** The request that was just answered; the waiting one is sent. */
function answered() {
  const { asked, next } = state;
  state.asked = state.next = null;
  document.body.classList.remove("waiting");
  if (next) ask(next);
  return asked;
}

export const branch = () => state.branches.find(({ session }) => session === state.session);

/** Begin again from `from` (the message's fields but for the seed). */
export function start(from) {
  stopUnmasking();
  branch().start = from;
  remember();
  state.psnr = [];
  $("verdict").textContent = "";
  if (!state.gone) showIntroduction(state.world, from.from === "game");
  bringIntoSight();
  ask({ type: "start", ...from, seed: whole($("seed")) });
}

/** The choice without a key: that of no key, or else the last action again. */
export function idle() {
  const noop = keyNames(state.world).map(canonical).indexOf("NOOP");
  return noop >= 0 ? keyChoice(state.world, noop) : choice(state.world, state.frame.action ?? state.world.occurring[0]);
}

/** Go to a frame, or the nearest that is kept. */
export function goTo(target) {
  if (!state.frame || state.replaying) return;
  stopUnmasking();
  const { oldest, newest } = state.frame;
  ask({ type: "goto", frame: Math.min(Math.max(target, oldest), newest) });
}

/** Go `step` frames on from the frame that is shown, or will be. */
export function turn(step) {
  const due = [state.next, state.asked?.message].find((message) => message?.type === "goto");
  goTo((due?.frame ?? state.frame?.frame) + step);
}

/** Show another of this tab's sessions. */
export function visit(session) {
  if (session === state.session) return;
  stopUnmasking();
  run(false);
  state.psnr = [];
  link.open((state.session = session));
}

/** Generate frames without keys, or pause. */
export function run(on) {
  if (on === input.running) return;
  input.run(on);
  showRunning(on);
}

/** Replay a recording; the server compares the frames. */
export function replay(content) {
  if (!link.send({ type: "replay", recording: content })) return;
  stopUnmasking();
  run(false);
  state.psnr = [];
  state.replaying = content.frames.length;
  note("Replaying the recording…");
  bringIntoSight();
  branch().start = null;
  $("seed").value = content.seed;
}

/** Put a file into the downloads. */
export function save(blob, ending) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = `${state.world.name.replace(/\W+/g, "-")}-seed${state.frame.seed}-${state.frame.frame}.${ending}`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
}

// ---- answers of the server

function hello({ session, world, settings, frame: at, ready }) {
  const fresh = JSON.stringify(world) !== JSON.stringify(state.world);
  Object.assign(state, { world, session, asked: null, next: null, replaying: 0 });
  const gone = state.branches.find((one) => !one.session);
  if (gone) gone.session = session;
  else if (!branch()) state.branches = [{ session, name: "First", start: null }];
  if (fresh) showWorld(world, input);
  if (state.gone) note(`${state.gone} A new session begins.`);
  showSettings(settings);
  showReady(ready);
  showVisitors();
  showBranches(visit);
  layout();
  remember();
  if ($("alert").dataset.about === "link") complain("");
  if (at !== null) ask({ type: "goto", frame: at }, true);
  else if (world.clips) start({ from: "heldout", clip: whole($("clip")) });
  else note("Choose or paste an image: the world model continues from it.");
  state.gone = "";
}

function frame(received) {
  const asked = answered();
  state.frame = received;
  state.psnr.length = received.newest + 1;
  state.psnr[received.frame] = received.psnr;
  if (asked && asked.message.type !== "goto") complain("");
  if (asked?.resumed) $("seed").value = received.seed;
  if (asked?.message.type === "act") {
    measure(received, asked.at);
    stayAwake();
  }
  if (state.replaying) $("verdict").textContent = `frame ${received.frame} of ${state.replaying}`;
  if (asked && asked.message.type !== "goto") stopUnmasking();
  showFrame();
  input.pump();
}

function status({ ready, visitors }) {
  if (ready) showReady(ready);
  state.visitors = visitors ?? state.visitors;
  showVisitors();
}

function showVisitors() {
  showLink("connected", state.visitors > 1 ? `${state.visitors} visitors` : "connected");
}

function branched({ session }) {
  const at = state.frame.frame;
  state.branches.push({ session, name: `From ${at}`, start: branch().start });
  note(`This is a copy from frame ${at}: the original session stays as it is.`);
  visit(session);
}

function replayed({ frames, same, first }) {
  state.replaying = 0;
  const verdict = same
    ? `Identical to the recording: all ${frames} frames.`
    : `Frame ${first} differs from the recording.`;
  $("verdict").textContent = verdict;
  note(verdict);
}

function recording({ recording: content }) {
  save(new Blob([JSON.stringify(content)], { type: "application/json" }), "json");
}

function error({ message }) {
  answered();
  $("verdict").textContent = "";
  state.replaying = 0;
  input.releaseAll();
  run(false);
  complain(message);
}

/** This session is no longer this tab's; with `wait`, a new connection is opened only at the next request. */
function expired({ message, wait }) {
  link.close();
  Object.assign(state, { asked: null, next: null, replaying: 0, ended: Boolean(wait) });
  document.body.classList.remove("waiting");
  input.releaseAll();
  run(false);
  if (wait) {
    showLink("lost", "ended");
    return complain(`${message} Choose any action to continue here.`, "link");
  }
  if (branch()) branch().session = "";
  state.gone = message;
  link.open((state.session = ""));
}

function full({ message }) {
  state.full = message;
}

function closedFull(seconds) {
  showLink("lost", "full");
  complain(`${state.full} This page tries again every ${seconds} seconds.`, "link");
}

function lost(seconds, answers) {
  disconnected("no connection");
  const known = state.world ? "The connection is lost, but not your session" : "The server does not answer";
  const problem = answers ? "The server answers, but no WebSocket reaches it" : known;
  const advice = answers ? "A proxy between has to pass WebSockets on." : "Is play.py running at this address?";
  complain(`${problem}: trying again in ${seconds} s. ${advice}`, "link");
}

function refused(message) {
  disconnected("refused");
  complain(isHere ? message : `${message} This page does not try again: load it again afterwards.`, "link");
}

function disconnected(text) {
  Object.assign(state, { asked: null, next: null, replaying: 0 });
  document.body.classList.remove("waiting");
  showLink("lost", text);
}
