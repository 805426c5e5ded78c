// The world in this page: a worker runs its graphs. The other side of these messages is worker.js.

const PARTS = ["runtime", "wasm", "gif", "start", "unmask", "finish", "weights", "world"];

/** Where the parts of a world are: in this file, or beside it; nowhere on a page that a server sends. */
const place = document.querySelector("meta[name=genie-world]")?.content;
export const isHere = Boolean(place);

/** The content of a part, an ArrayBuffer. */
async function part(name) {
  const embedded = document.getElementById(`genie-${name}`);
  if (!embedded) {
    const reply = await fetch(`${place}/${name}.bin`);
    if (!reply.ok) throw new Error(`${name}.bin is missing`);
    return unpacked(reply.body);
  }
  const text = embedded.textContent;
  embedded.remove(); // its text is no longer needed, and large
  const binary = atob(text);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  return unpacked(new Blob([bytes]).stream());
}

const unpacked = (stream) => new Response(stream.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();

let worker = null;
const answers = new Map(); // number of a question → {resolve, reject}

/** Ask the worker for something that is not a frame. */
function ask(question, transferred = []) {
  return new Promise((resolve, reject) => {
    const number = answers.size ? Math.max(...answers.keys()) + 1 : 0;
    answers.set(number, { resolve, reject });
    worker.postMessage({ ...question, number }, transferred);
  });
}

function answered({ number, error, value }) {
  const { resolve, reject } = answers.get(number);
  answers.delete(number);
  if (error) reject(new Error(error));
  else resolve(value);
}

/** As `connect` of server.js; this connection is never lost. */
export function connect(on) {
  let loaded = null, opening = 0; // sessions that were asked for and have not been opened

  async function load() {
    const names = await Promise.all(PARTS.map(part));
    const parts = Object.fromEntries(PARTS.map((name, i) => [name, names[i]]));
    await ask({ type: "load", parts }, names);
  }

  function open(session = "") {
    if (!worker) {
      const inFile = globalThis.genieWorker; // a browser loads no modules into the worker of a file
      worker = inFile ? new Worker(inFile) : new Worker(new URL("worker.js", import.meta.url), { type: "module" });
      worker.onmessage = ({ data }) => {
        if (data.type === "answer") return answered(data);
        if (data.type === "hello" || data.type === "expired") opening--;
        if (opening) return; // of a session that was left meanwhile
        if (data.type === "frame") on.frame(data.frame);
        else on[data.type]?.(data);
      };
      worker.onerror = ({ message }) => on.refused(`The world in this page cannot be run (${message ?? "no worker"}).`);
      loaded = load();
      loaded.catch((problem) => on.refused(`The world in this page cannot be read (${problem.message}).`));
    }
    opening++;
    loaded.then(() => worker.postMessage({ type: "open", session }), () => {});
  }

  function send(message) {
    if (opening) return false;
    worker.postMessage(message);
    return true;
  }

  return { open, close: () => {}, send };
}

/** Keep an image file: its id. */
export const upload = (file) => ask({ type: "upload", file });

/** The session so far as a GIF, a Blob. */
export const render = (session, format) => ask({ type: "render", session, format });

/** The address of an image: recorded transitions with an action. */
export const strip = (action) => ask({ type: "strip", action });
