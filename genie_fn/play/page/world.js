// A world whose ONNX graphs are run by ONNX Runtime: an image in, then one action after another in, one frame after another
// out. What the graphs are is described in genie_fn/export/folder.py.

import { foldIn, noiseOf } from "./random.js";

const GRAPHS = ["start", "unmask", "finish"];

/** The world in `parts`, where `ort` is ONNX Runtime and `about` the content of world.json. */
export async function openWorld(ort, parts, about) {
  const externalData = [{ path: "weights.bin", data: new Uint8Array(parts.weights) }];
  const graphs = {};
  for (const name of GRAPHS) {
    graphs[name] = await ort.InferenceSession.create(new Uint8Array(parts[name]), { externalData });
  }
  const { height, width, tokens, codes, factors } = about;
  const int64 = (numbers, dims) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);
  const float32 = (numbers, dims) => new ort.Tensor("float32", Float32Array.from(numbers), dims);

  /** A session that begins at an image of height × width × 3 bytes. */
  async function start(image) {
    const out = await graphs.start.run({ frame: new ort.Tensor("uint8", image, [height, width, 3]) });
    const zeros = new Uint8Array(tokens);
    return {
      pixels: out.pixels.data,
      ids: Uint32Array.from(out.ids.data, Number),
      probability: zeros.map(() => 255),
      revealed: zeros,
      state: stateOf(out),
    };
  }

  /** The next frame, given what a session keeps of the past, an action, and the frame's key. */
  async function step(state, action, key, steps, temperature) {
    const given = { action: int64([action], [1]) };
    const memory = Object.fromEntries(Object.entries(state).filter(([name]) => name.startsWith("memory/")));
    const revealed = new Uint8Array(tokens);
    let ids = int64(new Array(tokens).fill(codes), [1, tokens]), probability = null;
    for (let k = 0; k < steps; k++) {
      const noise = noiseOf(foldIn(key, k), tokens, factors);
      const out = await graphs.unmask.run({
        ids,
        ...given,
        ...memory,
        "step/k": int64([k], []),
        "step/steps": int64([steps], []),
        "step/temperature": float32([temperature], []),
        "noise/threshold": float32(noise.threshold, [1, tokens, factors]),
        "noise/score": float32(noise.score, [1, tokens]),
      });
      ids = out["next/ids"];
      probability = out.probability.data;
      ids.data.forEach((id, n) => (revealed[n] ||= Number(id) === codes ? 0 : k + 1));
    }
    const out = await graphs.finish.run({ ids, ...given, ...state });
    return {
      pixels: out.pixels.data,
      ids: Uint32Array.from(ids.data, Number),
      probability: Uint8Array.from(probability, (p) => Math.fround(255 * p)),
      revealed,
      state: stateOf(out),
    };
  }

  /** Caches of `parts`, as `added` took them from a state: the newest last. */
  function joined(parts) {
    const last = parts.at(-1);
    const whole = Object.entries(last).map(([name, { tensor, newest, dims }]) => {
      if (!newest) return [name, tensor];
      const [layers, , frames] = dims, block = newest.length / layers;
      const data = new Float32Array(layers * frames * block);
      parts.slice(-frames).forEach((part, i, all) => {
        const at = frames - all.length + i;
        for (let l = 0; l < layers; l++) {
          data.set(part[name].newest.subarray(l * block, (l + 1) * block), (l * frames + at) * block);
        }
      });
      return [name, new ort.Tensor("float32", data, dims)];
    });
    return Object.fromEntries(whole);
  }

  return { start, step, joined };
}

/** What a session keeps of the past: the outputs next/X are the inputs X of the next frame. */
function stateOf(out) {
  const kept = Object.entries(out).filter(([name]) => name.startsWith("next/"));
  return Object.fromEntries(kept.map(([name, tensor]) => [name.slice("next/".length), tensor]));
}

/** What the newest frame added to a state: one frame of each cache (L, B, S, N, G, E), and all of anything else. */
export function added(state) {
  const parts = Object.entries(state).map(([name, tensor]) => {
    if (!name.endsWith("_LBSNGE") || !tensor.dims[2]) return [name, { tensor }];
    const [layers, , frames] = tensor.dims, block = tensor.data.length / layers / frames;
    const newest = new Float32Array(layers * block);
    for (let l = 0; l < layers; l++) {
      const from = ((l + 1) * frames - 1) * block;
      newest.set(tensor.data.subarray(from, from + block), l * block);
    }
    return [name, { newest, dims: tensor.dims }];
  });
  return Object.fromEntries(parts);
}

/** How many frames' parts make a state. */
export const windowOf = (part) => Math.max(1, ...Object.values(part).map(({ dims }) => dims?.[2] ?? 0));
