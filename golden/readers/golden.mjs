// Golden files in plain JavaScript: copy this file; README.md shows its use. 0BSD.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const half = (b) => {
  const e = (b >> 10) & 31, f = b & 1023;
  const x = e === 31 ? (f ? NaN : Infinity) : 2 ** (e ? e - 25 : -24) * (e ? 1024 + f : f);
  return b & 0x8000 ? -x : x;
};
const READ = {
  F64: [8, (view, at) => view.getFloat64(at, true)],
  F32: [4, (view, at) => view.getFloat32(at, true)],
  F16: [2, (view, at) => half(view.getUint16(at, true))],
};
const hexadecimal = (word) => {
  if (!word.includes("0x")) return Number(word.replace("inf", "Infinity").replace("nan", "NaN"));
  const [, sign, whole, part, power] = /^(-?)0x([01])\.?([0-9a-f]*)p([+-]\d+)$/.exec(word);
  return (sign ? -1 : 1) * (parseInt(whole + part, 16) / 16 ** part.length) * 2 ** Number(power);
};

export function* cases(directory) {
  const manifest = JSON.parse(readFileSync(`${directory}/manifest.json`, "utf8")), blobs = {};
  if (manifest.format !== 1) throw new Error(`format must be 1, got ${manifest.format}`);
  for (const [name, { sha256 }] of Object.entries(manifest.blobs)) {
    const bytes = readFileSync(`${directory}/${name}`);
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    if (createHash("sha256").update(bytes).digest("hex") !== sha256)
      throw new Error(`${name}: SHA-256 must be ${sha256}`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const header = JSON.parse(bytes.toString("utf8", 8, start));
    for (const [key, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
      const [size, get] = READ[dtype], length = (end - begin) / size;
      const at = (_, i) => get(view, start + begin + i * size);
      blobs[key] = { shape, data: Float64Array.from({ length }, at) };
    }
  }
  for (const c of manifest.cases.filter((c) => c.result === "valid")) {
    const tensors = {};
    for (const name of c.tensors ?? []) tensors[name] = blobs[`${c.id}/${name}`];
    for (const [name, { shape, values }] of Object.entries(c.inline ?? {}))
      tensors[name] = { shape, data: Float64Array.from(values.match(/\S+/g) ?? [], hexadecimal) };
    yield { ...c, tensors };
  }
}

// How often each key counts, row-major (batch, heads, m, n) of c.mask; 0 for a key not seen.
export const counts = (c) => c.mask.rows.flatMap((row) =>
  [...row.matchAll(/(\d*)(\D)/g)].flatMap(([, times, sign]) =>
    Array(+times || 1).fill(".#bcdefghijklmnopqrstuvwxyz".indexOf(sign))));

// Whether an answer is within its bound; kind: float32, float16 or bfloat16.
export const passes = (got, c, name, kind) => c.tensors[name].data.every((want, i) =>
  Object.is(got[i], want) || got[i] === want
    || Math.abs(got[i] - want) <= c.tensors[`bound.${kind}.${name}`].data[i]);
if (import.meta.url === pathToFileURL(process.argv[1]).href)
  for (const c of cases(process.argv[2])) {
    const values = Object.values(c.tensors).flatMap((x) => [...x.data]), bits = Buffer.alloc(8);
    bits.writeDoubleBE(values.reduce((sum, x) => sum + (Number.isFinite(x) ? x : 0), 0));
    console.log(c.id, counts(c).reduce((a, b) => a + b, 0), values.length, bits.toString("hex"));
  }
