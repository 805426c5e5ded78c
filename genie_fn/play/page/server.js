// The world on the server: the messages between this page and it, and the connection that carries them.

const WAITS = [500, 1000, 2000, 4000, 8000]; // ms before each further try to connect
const FULL_WAIT = 15000; // ms before trying again to connect to a full server
const FULL = 1013; // the close code "try again later"

/** The address of `path` on this server, with the token of this page's own address, if any. */
function address(path, parameters = {}) {
  const url = new URL(path, location.href);
  const token = new URLSearchParams(location.search).get("token");
  url.search = new URLSearchParams(token ? { ...parameters, token } : parameters);
  return url;
}

/** A binary message: the fields of its header, and the arrays that follow it. */
export function decodeFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const pixels = header.height * header.width * 3;
  const tokens = header.grid[0] * header.grid[1];
  let offset = 4 + length;
  const take = (bytes) => new Uint8Array(buffer, (offset += bytes) - bytes, bytes);
  const rgb = take(pixels), probability = take(tokens), revealed = take(tokens);
  const ids = new Uint32Array(take(4 * tokens).slice().buffer); // a copy, because the view has to be aligned
  return { ...header, rgb, probability, revealed, ids, game_rgb: header.game ? take(pixels) : null };
}

/** The reply to a request. Throws an Error with the server's message if it refuses. */
async function request(url, options) {
  const reply = await fetch(url, options).catch(() => null);
  if (!reply) throw new Error("The server does not answer: is play.py running?");
  if (reply.ok) return reply;
  const { error } = await reply.json().catch(() => ({}));
  throw new Error(error ?? `The server refused this (status ${reply.status}).`);
}

/** Send a file to the server: the id of the image. */
export async function upload(file) {
  const reply = await request(address("upload"), { method: "POST", body: file });
  return (await reply.json()).image;
}

/** The session so far as a video, a Blob. */
export async function render(session, format) {
  return (await request(address("render", { session, format }))).blob();
}

/** The address of an image: recorded transitions with an action. */
export const strip = async (action) => address("examples", { action });

/**
 * Why no socket was opened, which a browser does not say: a request of the same origin to the same path is refused for
 * the same reason. {refusal}, a sentence; {answers: true} where the server accepts it; {} where no server answers.
 */
async function diagnose() {
  const reply = await fetch(address("play"), { method: "POST" }).catch(() => null);
  if (!reply || reply.status >= 500) return {}; // 502 to 504 are a proxy's own, whose server does not answer
  if (reply.ok) return { answers: true };
  const { error } = await reply.json().catch(() => ({}));
  return { refusal: error ?? `This page's connection was refused with status ${reply.status}.` };
}

/**
 * A connection that keeps trying. `on` has a function per type of message, `frame` for the binary ones,
 * `lost(seconds, answers)` when the connection broke and will be tried again, where `answers` says whether the server
 * answers other requests, `refused(message)` when it will not be tried again, and `closedFull(seconds)`.
 */
export function connect(on) {
  let socket = null, session = "", failures = 0, timer = 0, full = false, greeted = false;

  function close() {
    clearTimeout(timer);
    if (socket) socket.onclose = socket.onmessage = null;
    socket?.close();
    socket = null;
  }

  function open(id = session) {
    close();
    session = id;
    full = greeted = false;
    const url = address("play", { session });
    url.protocol = url.protocol.replace("http", "ws");
    socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") receive(JSON.parse(data));
      else on.frame(decodeFrame(data));
    };
    socket.onclose = ({ code }) => ended(socket, full || code === FULL);
  }

  function receive(message) {
    if (message.type === "hello") {
      session = message.session;
      failures = 0;
      greeted = true;
    }
    full = message.type === "full";
    on[message.type]?.(message);
  }

  async function ended(closed, wasFull) {
    const { refusal, answers } = wasFull || greeted ? {} : await diagnose();
    if (socket !== closed) return; // another was opened meanwhile
    socket = null;
    if (refusal) return on.refused(refusal);
    const wait = wasFull ? FULL_WAIT : WAITS[Math.min(failures++, WAITS.length - 1)];
    if (wasFull) on.closedFull(wait / 1000);
    else on.lost(wait / 1000, Boolean(answers));
    timer = setTimeout(open, wait);
  }

  /** Send a message; returns whether it was sent. */
  function send(message) {
    if (socket?.readyState !== WebSocket.OPEN) return false;
    socket.send(JSON.stringify(message));
    return true;
  }

  addEventListener("online", () => socket || open());
  return { open, close, send };
}
