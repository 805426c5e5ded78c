// Drawing: frames at whole multiples of their pixels, and overlays of their tokens.

// Colours of a probability from 0 to 1, dark to bright so that it reads without colour vision too.
const COLOURS = [[27, 12, 65], [120, 28, 109], [207, 68, 70], [251, 155, 6], [252, 240, 120]];
const SMALLEST_TEXT = 9; // CSS pixels: below this an id is not legible and only its colour is shown

/** Put RGB bytes on a canvas of the frame's own size. */
export function paint(canvas, rgb, { width, height }) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; i < rgb.length; j += 4) {
    image.data[j] = rgb[i++];
    image.data[j + 1] = rgb[i++];
    image.data[j + 2] = rgb[i++];
    image.data[j + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Scale canvases of `width` x `height` pixels, standing side by side in `room` (CSS pixels), so that each of their
 * pixels covers a whole number of the display's.
 */
export function fit(canvases, { width, height }, room) {
  const ratio = devicePixelRatio || 1;
  const scale = Math.max(1, Math.floor(Math.min(room.width / canvases.length / width, room.height / height) * ratio));
  for (const canvas of canvases) {
    canvas.style.width = `${(width * scale) / ratio}px`;
    canvas.style.height = `${(height * scale) / ratio}px`;
  }
}

function colour(p) {
  const place = Math.min(Math.max(p, 0), 1) * (COLOURS.length - 1);
  const i = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[i].map((low, c) => Math.round(low + (COLOURS[i + 1][c] - low) * (place - i))).join(" ");
}

/** The legend's bar: every probability's colour, as opaque as in the overlay. */
export function paintRamp(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1))})`;
    context.fillRect(x, 0, 1, 1);
  }
}

/** A hue per id, far apart for neighbouring ids. */
const hue = (id) => (id * 137.508) % 360;

/** A context on `canvas` in CSS pixels, empty, and its size; sharp on dense displays. */
function clean(canvas, style = canvas) {
  const { clientWidth: width, clientHeight: height } = style;
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

/** Call `draw(token, x, y, w, h)` for every cell of the frame's grid. */
function cells(frame, width, height, draw) {
  const [rows, columns] = frame.grid;
  const w = width / columns, h = height / rows;
  for (let n = 0; n < rows * columns; n++) draw(n, (n % columns) * w, Math.floor(n / columns) * h, w, h);
}

/**
 * Draw over `frame`: `confidence` as a heat map, `ids` as colours and numbers, and where `known` (a MaskGIT step) is
 * given, grey over every token that this step did not know yet. Returns whether ids were legible.
 */
export function paintOverlay(canvas, frame, { confidence, ids, known }) {
  if (!confidence && !ids && known === null) {
    canvas.width = 0; // empty
    return true;
  }
  const { context, width, height } = clean(canvas);
  const size = ids ? textSize(context, frame, width, height) : 0;
  cells(frame, width, height, (n, x, y, w, h) => {
    const hidden = known !== null && frame.revealed[n] > known;
    if (hidden) return paintHidden(context, x, y, w, h);
    if (confidence) context.fillStyle = `rgb(${colour(frame.probability[n] / 255)} / 62%)`;
    else if (ids) context.fillStyle = `hsl(${hue(frame.ids[n])} 75% 45% / 55%)`;
    if (confidence || ids) context.fillRect(x, y, w, h);
    if (size) paintText(context, frame.ids[n], x + w / 2, y + h / 2, size);
    if (known && frame.revealed[n] === known) paintNew(context, x, y, w, h);
  });
  return !ids || size > 0;
}

function textSize(context, frame, width, height) {
  const longest = String(Math.max(...frame.ids));
  const w = width / frame.grid[1], h = height / frame.grid[0];
  context.font = "600 10px ui-monospace, monospace";
  const size = Math.min(15, h * 0.5, ((w - 4) / context.measureText(longest).width) * 10);
  return size < SMALLEST_TEXT ? 0 : size;
}

function paintText(context, text, x, y, size) {
  context.font = `600 ${size}px ui-monospace, monospace`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = "rgb(0 0 0 / 75%)";
  context.fillStyle = "#fff";
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

function paintHidden(context, x, y, w, h) {
  context.fillStyle = "#8a8a8a";
  context.fillRect(x, y, w, h);
  context.fillStyle = "#787878";
  context.fillRect(x + 1, y + 1, w - 2, h - 2);
}

function paintNew(context, x, y, w, h) {
  context.lineWidth = 2;
  context.strokeStyle = "#e9b44c";
  context.strokeRect(x + 1, y + 1, w - 2, h - 2);
}

/** How many of the frame's tokens are known after MaskGIT step `k`. */
export const knownAfter = (frame, k) => frame.revealed.reduce((sum, step) => sum + (step <= k), 0);

/** The token under a pointer event over `canvas`, in words; empty outside. */
export function describe(canvas, frame, event) {
  const box = canvas.getBoundingClientRect();
  const [rows, columns] = frame.grid;
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
  const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
  if (row < 0 || column < 0 || row >= rows || column >= columns) return "";
  const n = row * columns + column;
  const place = `row ${row + 1}, column ${column + 1}: token ${frame.ids[n]}`;
  if (frame.action === null) return `${place}, start frame`;
  const percent = Math.round((frame.probability[n] / 255) * 100);
  return `${place}, probability ${percent} %, revealed at step ${frame.revealed[n]} of ${frame.steps}`;
}

/** A line through `values` (null where there is none), with its first and last values marked by dots. */
export function paintSpark(canvas, values) {
  const { context, width, height } = clean(canvas);
  const known = values.filter((value) => value !== null);
  if (!known.length) return;
  const low = Math.min(...known), span = Math.max(...known) - low || 1;
  const x = (i) => 4 + (i / Math.max(values.length - 1, 1)) * (width - 8);
  const y = (value) => height - 4 - ((value - low) / span) * (height - 8);
  const text = getComputedStyle(canvas).color;
  Object.assign(context, { strokeStyle: text, fillStyle: text, lineWidth: 1.5, lineJoin: "round" });
  context.beginPath();
  values.forEach((value, i) => value !== null && context.lineTo(x(i), y(value)));
  context.stroke();
  const last = values.findLastIndex((value) => value !== null);
  context.beginPath();
  context.arc(x(last), y(values[last]), 3, 0, 7);
  context.fill();
}
