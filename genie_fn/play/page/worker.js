// The worker behind local.js: it keeps sessions and answers the messages that genie_fn/play/visitor.py answers elsewhere.

import { crc32, decodePng, encodePng } from "./png.js";
import { foldIn, keyOf } from "./random.js";
import { added, openWorld, windowOf } from "./world.js";

const MAX_MOMENTS = 300; // frames kept
const MAX_BYTES = 128 * 2 ** 20; // bytes of a session, whatever the number of frames
const MAX_TOTAL = 256 * 2 ** 20; // bytes of all sessions
const MAX_SHRINKING = 16; // pixels of an own image that become one, along a side
const MAX_RECORDS = 10000; // frames of a recording
const MAX_SEED = 2 ** 53;
const MAX_STEPS = 64;
const MAX_TEMPERATURE = 10;
const FORMAT = { format: "genie_fn recording", version: 1 };
const MAX_IMAGES = 32; // own images kept
const GIF_SIDE = 256; // pixels, about
const GIF_DELAY = 1000 / 15; // ms

let world = null, about = null, gif = null;
const places = new Map(); // id → {session, temperature, steps}
const images = new Map(); // id → bytes
let place = null; // the one that is open

/** An unused name. `crypto.randomUUID` exists on secure hosts alone. */
const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("");

class Refusal extends Error {}

function refuse(text) {
  throw new Refusal(text);
}

/** A whole number of a message. */
function number(message, name, low, high, otherwise) {
  const value = message[name] ?? otherwise;
  if (!Number.isInteger(value) || value < low || value > high) {
    refuse(`The ${name} should be a whole number from ${low} to ${high}.`);
  }
  return value;
}

function temperatureOf(message, otherwise) {
  const value = message.temperature ?? otherwise;
  if (typeof value !== "number" || !(value >= 0 && value <= MAX_TEMPERATURE)) {
    refuse(`The temperature should be a number from 0 to ${MAX_TEMPERATURE}.`);
  }
  return value;
}

// ---- sessions: values, which a change replaces

const present = (session) => session.moments[session.at - session.first];
const newest = (session) => session.first + session.moments.length - 1;
const past = (session) => session.moments.slice(0, session.at - session.first + 1);

function oldest(session) {
  return session.first === 0 ? 0 : session.first + windowOf(session.moments[0].added) - 1;
}

function momentOf({ state, ...frame }, record) {
  const parts = added(state);
  const sizes = Object.values(parts).map(({ newest, tensor }) => (newest ?? tensor.data).byteLength);
  return { ...frame, added: parts, record, bytes: sizes.reduce((sum, bytes) => sum + bytes, frame.pixels.byteLength) };
}

async function begin(start, seed) {
  const began = performance.now();
  const moment = momentOf(await world.start(start), null);
  place.session = { moments: [{ ...moment, ms: performance.now() - began }], at: 0, seed, start, first: 0, records: [] };
  sendFrame();
}

/** Generate and send one more frame. */
async function advance(action, recorded, temperature, steps) {
  const session = place.session, began = performance.now();
  const parts = past(session).map((moment) => moment.added);
  const state = world.joined(parts.slice(-windowOf(parts.at(-1))));
  const key = foldIn(keyOf(session.seed), session.at + 1);
  const frame = await world.step(state, action, key, steps, temperature);
  const record = { action, real: recorded, temperature, steps, compiled: true, hash: hashOf(frame.pixels) };
  const moment = { ...momentOf(frame, record), ms: performance.now() - began };
  const moments = [...past(session), moment];
  const room = Math.max(Math.min(MAX_MOMENTS, Math.floor(MAX_BYTES / moment.bytes)), windowOf(moment.added) + 1);
  const dropped = moments.splice(0, Math.max(0, moments.length - room));
  const records = [...session.records, ...dropped.flatMap(({ record }) => record ?? [])].slice(0, MAX_RECORDS);
  place.session = { ...session, moments, first: session.first + dropped.length, at: session.at + 1, records };
  forget();
  sendFrame();
}

/** Drop sessions that are not open, the oldest first, where all need too much. Branches share frames. */
function forget() {
  const bytes = () => {
    const moments = new Set([...places.values()].flatMap(({ session }) => session?.moments ?? []));
    return [...moments].reduce((sum, moment) => sum + moment.bytes, 0);
  };
  for (const [id, other] of places) {
    if (bytes() <= MAX_TOTAL) return;
    if (other !== place) places.delete(id);
  }
}

function open(session) {
  if (!session) refuse("No session has begun yet: choose a first frame.");
  return session;
}

function sendFrame() {
  const { session } = place, moment = present(session);
  const { record, pixels: rgb, ids, probability, revealed, ms } = moment;
  const { height, width, grid } = about.page;
  const start = { action: null, recorded: null, temperature: 1, steps: 0, hash: hashOf(rgb) };
  const header = record ? { ...record, recorded: record.real } : start;
  const position = { frame: session.at, oldest: oldest(session), newest: newest(session) };
  const size = { height, width, grid, game: false, game_rgb: null, psnr: null, mean_psnr: null };
  postMessage({ type: "frame", frame: { ...size, ...header, ...position, seed: session.seed, ms, rgb, ids, probability, revealed } });
}

// ---- messages

const handlers = {
  open({ session }) {
    if (session && !places.has(session)) {
      return postMessage({ type: "expired", message: "That session is no longer kept." });
    }
    if (!session) {
      session = newId();
      places.set(session, { session: null, temperature: about.temperature, steps: about.steps });
    }
    place = places.get(session);
    const settings = { temperature: place.temperature, steps: place.steps };
    const frame = place.session ? place.session.at : null;
    postMessage({ type: "hello", session, world: about.page, settings, frame, ready: "local" });
    postMessage({ type: "status", visitors: 1 });
  },

  async start(message) {
    const seed = number(message, "seed", 0, MAX_SEED);
    if (message.from === "game") refuse("The real game runs on a server only: play this world with play.py.");
    if (message.from === "image") {
      return begin(images.get(message.image) ?? refuse("That image is no longer kept: choose it again."), seed);
    }
    const clips = about.images.length;
    if (!clips) refuse("This world has no held-out frames: start from an image.");
    return begin(fromBase64(about.images[number(message, "clip", 0, 1e9) % clips]), seed);
  },

  async act(message) {
    open(place.session);
    let { action, recorded = null } = message;
    if (recorded !== null) {
      const { kind, map, names } = about.page;
      number(message, "recorded", 0, Math.max(names.length, 1) - 1);
      if (kind === "latent" && !map) refuse("This world's latent actions were never compared with recorded ones.");
      action = map ? map.to_latent[recorded] : recorded;
    }
    number({ action }, "action", 0, about.actions - 1);
    await advance(action, recorded, place.temperature, place.steps);
  },

  settings(message) {
    const temperature = temperatureOf(message, place.temperature);
    place.steps = number(message, "steps", 1, MAX_STEPS, place.steps);
    place.temperature = temperature;
  },

  goto(message) {
    const session = open(place.session);
    const frame = number(message, "frame", 0, MAX_SEED);
    place.session = { ...session, at: Math.min(Math.max(frame, oldest(session)), newest(session)) };
    sendFrame();
  },

  branch() {
    open(place.session);
    const session = newId();
    places.set(session, { ...place });
    postMessage({ type: "branched", session });
  },

  async record() {
    const session = open(place.session);
    const records = [...session.records, ...past(session).flatMap(({ record }) => record ?? [])];
    if (records.length > MAX_RECORDS || records.length < session.at) {
      refuse(`A recording holds ${MAX_RECORDS} frames, and this session is longer: start a new one, or go back.`);
    }
    const start = toBase64(await encodePng(session.start, about.height, about.width));
    const recording = { ...FORMAT, world: about.identity, start, seed: session.seed, level: null, frames: records };
    postMessage({ type: "recording", recording });
  },

  async replay({ recording }) {
    const { start, seed, frames } = await checked(recording);
    await begin(start, seed);
    let first = null;
    for (const [t, frame] of frames.entries()) {
      await new Promise((resolve) => setTimeout(resolve)); // messages arrive meanwhile
      if (waiting.some(({ type }) => type === "open")) return; // this session was left
      await advance(frame.action, frame.real ?? null, frame.temperature, frame.steps);
      if (first === null && present(place.session).record.hash !== frame.hash) first = t + 1;
    }
    postMessage({ type: "replayed", frames: frames.length, same: first === null, first });
  },
};

/** What is answered with a value, and not with messages. */
const questions = {
  async load({ parts }) {
    const decoded = (name) => new TextDecoder().decode(parts[name]);
    const module = (name) => import(URL.createObjectURL(new Blob([decoded(name)], { type: "text/javascript" })));
    about = JSON.parse(decoded("world"));
    const ort = await module("runtime");
    gif = await module("gif");
    ort.env.wasm.wasmBinary = parts.wasm;
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
    world = await openWorld(ort, parts, about);
  },

  async upload({ file }) {
    const image = await createImageBitmap(file).catch(() => refuse("This file is not an image that this browser can read."));
    const id = newId();
    images.set(id, fitted(image));
    if (images.size > MAX_IMAGES) images.delete(images.keys().next().value);
    return id;
  },

  render({ session, format }) {
    if (format !== "gif") refuse("This page writes GIF files only: play this world with play.py for an MP4.");
    return animation(past(open(places.get(session)?.session)).map(({ pixels }) => pixels));
  },

  strip: ({ action }) => about.strips[action],
};

/** A recording whose every field has been checked. */
async function checked(content) {
  if (content?.format !== FORMAT.format || content.version !== FORMAT.version) {
    refuse("This is not a recording that this page can read: choose a JSON file that it has saved.");
  }
  if (content.world !== about.identity) refuse("This recording was made in another world: play that world to replay it.");
  if (content.level != null) refuse("This recording was made beside the real game, which runs on a server only.");
  const seed = number(content, "seed", 0, MAX_SEED);
  if (!Array.isArray(content.frames) || content.frames.length > MAX_RECORDS) {
    refuse(`This recording is damaged: it should hold a list of at most ${MAX_RECORDS} frames.`);
  }
  content.frames.forEach((frame, t) => {
    try {
      number(frame, "action", 0, about.actions - 1);
      number(frame, "steps", 1, MAX_STEPS);
      temperatureOf(frame);
      if (frame.real != null) number(frame, "real", 0, 255);
      if (typeof frame.hash !== "string") refuse("A frame has a hash.");
    } catch {
      refuse(`Frame ${t + 1} of this recording is damaged.`);
    }
  });
  try {
    return { start: await decodePng(fromBase64(content.start), about.height, about.width), seed, frames: content.frames };
  } catch {
    return refuse("This recording is damaged: its first frame cannot be read.");
  }
}

// ---- pictures

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const hashOf = (rgb) => crc32(rgb).toString(16).padStart(8, "0");

/** The largest part of the world's shape from the middle of an image, as means of its pixels. */
function fitted(image) {
  const { height, width } = about;
  const scale = Math.min(image.width / width, image.height / height);
  const side = Math.min(Math.max(Math.floor(scale), 1), MAX_SHRINKING); // of the square that becomes a pixel
  const [across, down] = [width * scale, height * scale];
  const canvas = new OffscreenCanvas(width * side, height * side);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = about.background;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  const from = [(image.width - across) / 2, (image.height - down) / 2, across, down];
  context.drawImage(image, ...from, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const sums = new Float64Array(3 * width * height);
  for (let i = 0; i < data.length / 4; i++) {
    const x = Math.floor((i % canvas.width) / side), y = Math.floor(i / canvas.width / side);
    for (let c = 0; c < 3; c++) sums[3 * (y * width + x) + c] += data[4 * i + c];
  }
  return Uint8Array.from(sums, (sum) => Math.round(sum / side ** 2));
}

/** Bytes with an opaque alpha, each pixel `scale` times as large. */
function rgba(rgb, scale = 1) {
  const { height, width } = about, side = width * scale;
  const data = new Uint8ClampedArray(4 * side * height * scale);
  for (let i = 0; i < side * height * scale; i++) {
    const from = 3 * (Math.floor(Math.floor(i / side) / scale) * width + Math.floor((i % side) / scale));
    data.set([rgb[from], rgb[from + 1], rgb[from + 2], 255], 4 * i);
  }
  return data;
}

/** Frames as an animated GIF, a Blob. */
function animation(frames) {
  const { height, width } = about, scale = Math.max(1, Math.floor(GIF_SIDE / height));
  const encoder = gif.GIFEncoder();
  for (const frame of frames) {
    const pixels = rgba(frame, scale), palette = gif.quantize(rgba(frame), 256);
    encoder.writeFrame(gif.applyPalette(pixels, palette), width * scale, height * scale, { palette, delay: GIF_DELAY });
  }
  encoder.finish();
  return new Blob([encoder.bytes()], { type: "image/gif" });
}

// ---- one message after another

const waiting = [];
let busy = false;

addEventListener("message", ({ data }) => {
  if (data.type === "act" && waiting.at(-1)?.type === "act") waiting.pop(); // only the latest is wanted
  waiting.push(data);
  work();
});

async function work() {
  if (busy) return;
  busy = true;
  while (waiting.length) {
    const message = waiting.shift(), { number } = message;
    try {
      if (number === undefined) await handlers[message.type](message);
      else postMessage({ type: "answer", number, value: await questions[message.type](message) });
    } catch (problem) {
      if (!(problem instanceof Refusal)) console.error(problem);
      const error = problem instanceof Refusal ? problem.message : `Something went wrong: ${problem.message ?? problem}.`;
      postMessage(number === undefined ? { type: "error", message: error } : { type: "answer", number, error });
    }
  }
  busy = false;
}
