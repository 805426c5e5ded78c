// Random numbers with explicit keys, the bits of genie_fn/random.py: Threefry-2x32 (Salmon et al. 2011) in the layout of
// JAX. A key is a pair of 32-bit words.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const PARITY = 0x1bd11bda;
const TINY = 1.1754943508222875e-38; // the smallest normal float32
const WORD = 2 ** 32;

/** The counters (x0, x1) encrypted with a key: 20 rounds. */
function threefry([k0, k1], x0, x1) {
  const schedule = [k0, k1, (k0 ^ k1 ^ PARITY) >>> 0];
  x0 = (x0 + k0) >>> 0;
  x1 = (x1 + k1) >>> 0;
  for (let i = 0; i < 5; i++) {
    for (const r of ROTATIONS[i % 2]) {
      x0 = (x0 + x1) >>> 0;
      x1 = (((x1 << r) | (x1 >>> (32 - r))) ^ x0) >>> 0;
    }
    x0 = (x0 + schedule[(i + 1) % 3]) >>> 0;
    x1 = (x1 + schedule[(i + 2) % 3] + i + 1) >>> 0;
  }
  return [x0, x1];
}

const encrypt = (key, counter) => threefry(key, Math.floor(counter / WORD), counter >>> 0);

/** A key from the low 32 bits of a seed. */
export const keyOf = (seed) => [0, seed % WORD];

/** A key from a key and a 32-bit integer. */
export const foldIn = (key, data) => encrypt(key, data);

/** `count` numbers of float32, uniform on [0, 1), with 23 random bits. */
export function uniform(key, count) {
  return Float32Array.from({ length: count }, (_, i) => {
    const [high, low] = encrypt(key, i);
    return ((high ^ low) >>> 9) * 2 ** -23;
  });
}

/** `count` numbers of float32, standard Gumbel. */
export function gumbel(key, count) {
  const log = (x) => Math.fround(Math.log(x));
  return uniform(key, count).map((u) => -log(-log(u || TINY)));
}

/** The noise of one MaskGIT step, as `dynamics.noise_of`. */
export function noiseOf(key, tokens, factors) {
  const [pick, score] = [0, 1].map((i) => encrypt(key, i));
  return { threshold: uniform(pick, tokens * factors), score: gumbel(score, tokens) };
}
