// PNG files of 8-bit RGB pixels, read and written exactly: some browsers alter what is read from a canvas.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEADER = 13; // bytes of the chunk IHDR
const FILTERS = [() => 0, (left) => left, (_, up) => up, (left, up) => (left + up) >> 1, paeth];

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

/** The CRC-32 of bytes. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 255];
  return (crc ^ 0xffffffff) >>> 0;
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(guess - value));
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

function chunk(name, content) {
  const bytes = new Uint8Array(12 + content.length), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(8 + content.length, crc32(bytes.subarray(4, 8 + content.length)));
  return bytes;
}

/** A PNG file of height × width × 3 bytes. */
export async function encodePng(rgb, height, width) {
  const header = new Uint8Array(HEADER), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 2, 0, 0, 0], 8); // bits, RGB, and the only methods there are
  const row = 3 * width, raw = new Uint8Array(height * (row + 1));
  for (let y = 0; y < height; y++) raw.set(rgb.subarray(y * row, (y + 1) * row), y * (row + 1) + 1);
  const packed = await through(raw, new CompressionStream("deflate"));
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", packed), chunk("IEND", new Uint8Array())];
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The bytes of a PNG file of exactly this size. Throws an Error for any other file. */
export async function decodePng(file, height, width) {
  if (SIGNATURE.some((byte, i) => file[i] !== byte)) throw new Error("no PNG file");
  const view = new DataView(file.buffer, file.byteOffset), packed = [];
  for (let at = SIGNATURE.length; at < file.length; ) {
    const length = view.getUint32(at), name = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const content = file.subarray(at + 8, at + 8 + length);
    if (name === "IHDR") {
      const size = [view.getUint32(at + 8), view.getUint32(at + 12), ...content.subarray(8)];
      if (size.join() !== [width, height, 8, 2, 0, 0, 0].join()) throw new Error("another size or kind");
    }
    if (name === "IDAT") packed.push(content);
    at += 12 + length;
  }
  const raw = await through(await new Blob(packed).arrayBuffer(), new DecompressionStream("deflate"));
  const row = 3 * width, rgb = new Uint8Array(height * row);
  if (raw.length !== height * (row + 1)) throw new Error("damaged");
  for (let y = 0; y < height; y++) {
    const filter = FILTERS[raw[y * (row + 1)]];
    for (let x = 0; x < row; x++) {
      const at = y * row + x;
      const left = x < 3 ? 0 : rgb[at - 3], up = y ? rgb[at - row] : 0, corner = x < 3 || !y ? 0 : rgb[at - row - 3];
      rgb[at] = raw[y * (row + 1) + 1 + x] + filter(left, up, corner);
    }
  }
  return rgb;
}
