// The page on which a person plays a game: keys and buttons to the server, its frames to the canvas.

import { glyph, pad, player } from "../controls.js";
import { actionOf, commandKey, directionOf, isReserved } from "../keys.js";

const $ = (id) => document.getElementById(id);
const screen = $("frame").getContext("2d");

let game = null; // what the server said first: names of actions, size, frames per second
let waiting = true; // for the next frame
let unsaved = 0; // frames

const scheme = location.protocol === "https:" ? "wss" : "ws";
const socket = new WebSocket(`${scheme}://${location.host}${location.pathname}play${location.search}`);
socket.binaryType = "arraybuffer";

const input = player({
  ready: () => game !== null && !waiting && socket.readyState === WebSocket.OPEN,
  send: ({ action }) => ask({ type: "act", action }),
  names: () => game.names,
  key: (n) => ({ action: n }),
  idle: () => ({ action: Math.max(0, game.names.indexOf("NOOP")) }),
});

function ask(message) {
  waiting = true;
  socket.send(JSON.stringify(message));
}

function say(text) {
  $("alert").hidden = !text;
  $("alert-text").textContent = text;
}

function begin(hello) {
  game = hello;
  $("game-name").textContent = `${game.env}, recorded to ${game.root}`;
  $("frame").width = game.width;
  $("frame").height = game.height;
  game.names.forEach((name, action) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action < 10 ? `${glyph(name)} ${(action + 1) % 10}` : glyph(name);
    button.title = name;
    pad(button, { action }, input);
    $("actions").append(button);
  });
  input.limit(game.fps);
}

function show(state) {
  unsaved = state.frames;
  const saved = `${state.saved} recordings of ${state.saved_frames} frames are saved`;
  $("state").textContent = `level ${state.level}: ${state.frames} frames, for ${state.split}; ${saved}`;
  $("save").disabled = $("discard").disabled = !unsaved;
  if (state.ended) $("note").textContent = `The episode ended (reward ${state.reward}). The next one began.`;
  else $("note").textContent = unsaved ? "Recording." : "Press a key, or Run.";
}

function paint(pixels) {
  const image = screen.createImageData(game.width, game.height);
  const rgb = new Uint8Array(pixels);
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    image.data.set(rgb.subarray(i, i + 3), j);
    image.data[j + 3] = 255;
  }
  screen.putImageData(image, 0, 0);
  waiting = false;
  input.pump();
}

socket.addEventListener("message", ({ data }) => {
  if (typeof data !== "string") return paint(data);
  const message = JSON.parse(data);
  if (message.type === "hello") return begin(message);
  if (message.type === "frame") return show(message);
  say(message.message);
  waiting = false;
});

socket.addEventListener("close", (event) => {
  if (!game) explain(event);
  else say("The connection ended. If the program ended by itself or by Ctrl-C, what was recorded is saved.");
});

/** Browsers hide why a socket was not opened; the same address answers a request with the reason. */
async function explain(event) {
  const answer = await fetch(`play${location.search}`, { method: "POST" }).catch(() => null);
  const reason = answer && !answer.ok ? (await answer.json()).error : event.reason;
  if ($("alert").hidden) say(reason || "The server cannot be reached: start it again.");
}

const commands = {
  run() {
    input.run(!input.running);
    $("run").setAttribute("aria-pressed", input.running);
    $("run").textContent = input.running ? "Pause" : "Run";
  },
  save: () => unsaved && command({ type: "save" }),
  discard: () => unsaved && command({ type: "discard" }),
};

/** Ask for something else than a frame: time stops, so that nothing is played by accident. */
function command(message) {
  if (input.running) commands.run();
  input.releaseAll();
  ask(message);
}

for (const [name, act] of Object.entries(commands)) {
  $(name).addEventListener("click", (event) => {
    act();
    if (event.detail) $(name).blur(); // after a mouse, the keys belong to the game again
  });
}

const KEYS = { R: "run", ENTER: "save", BACKSPACE: "discard" };

addEventListener("keydown", (event) => {
  if (!game || isReserved(event)) return;
  const fires = event.code === "Space" && !game.names.some((known) => /UP|JUMP/.test(known));
  const direction = fires ? undefined : directionOf(event);
  const action = fires ? game.names.indexOf("FIRE") : actionOf(event, game.names.length);
  const name = KEYS[commandKey(event)];
  const onButton = event.target instanceof HTMLButtonElement && /^(Enter|Space)$/.test(event.code);
  if (onButton || (!direction && action < 0 && !name)) return;
  event.preventDefault();
  if (event.repeat) return;
  if (direction) input.press(event.code, { direction });
  else if (action >= 0) input.press(event.code, { action });
  else commands[name]();
});
addEventListener("keyup", (event) => input.release(event.code));
addEventListener("blur", () => input.releaseAll());
