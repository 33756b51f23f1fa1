// Attention written from SPEC.md alone, in float32, held against the golden files. 0BSD.
//   node attention.mjs path/to/golden
// Masks are read from the text of the case; where the pattern is simple they are made from its
// JSON too, and must be the same. Gradients are left to the C++ program next to this one.
import { cases, counts, passes } from "../readers/golden.mjs";

const f = Math.fround; // every result rounded to float32

// ---- section 4: how often a pair counts, or null for kinds that this program does not know ------

const mod = (x, y) => x - Math.floor(x / y) * y;
const has = ({ set }, x) => set.some(([start, stop, step]) =>
  x >= start && x < stop && (x - start) % step === 0);
const most = (x, bound, factor = 1) => bound === null || x <= bound * factor;
const SIMPLE = {
  Full: () => true,
  Causal: (p, q, k) => k <= q,
  SlidingWindow: ({ left, right, dilation }, q, k) => most(q - k, left, dilation)
    && most(k - q, right, dilation) && mod(q - k, dilation) === 0,
  Chunked: ({ size, back, ahead, origin }, q, k) => {
    const c = Math.floor((q - origin) / size) - Math.floor((k - origin) / size);
    return most(c, back) && most(-c, ahead);
  },
  Strided: ({ stride, phase }, q, k) => mod(q - k, stride) === phase,
  Offsets: ({ offsets }, q, k) => has(offsets, q - k),
  Keys: ({ tokens }, q, k) => has(tokens, k),
  Rows: ({ tokens }, q) => has(tokens, q),
  Global: ({ tokens }, q, k) => has(tokens, q) || has(tokens, k),
  KeyStride: ({ period, residues }, q, k) => has(residues, mod(k, period)),
  RowStride: ({ period, residues }, q) => has(residues, mod(q, period)),
  Xor: ({ distances }, q, k) => has(distances, q ^ k),
  PrefixLM: ({ prefix }, q, k) => k <= q || k < prefix,
  Sink: ({ count }, q, k) => k < count,
};
function rule(p) {
  if (SIMPLE[p.kind]) return (q, k) => Number(SIMPLE[p.kind](p, q, k));
  const parts = (p.patterns ?? [p.pattern]).map((one) => (one ? rule(one) : null));
  if (parts.includes(null)) return null;
  switch (p.kind) {
    case "And": return (...at) => parts.slice(1).every((r) => r(...at)) * parts[0](...at);
    case "Or": return (...at) => Number(parts.some((r) => r(...at)));
    case "Not": return (...at) => Number(!parts[0](...at));
    case "Multi": return (...at) => parts.reduce((sum, r) => sum + r(...at), 0);
    case "PerHead": return (q, k, h, b) => parts[h % parts.length](q, k, h, b);
    case "PerBatch": return (q, k, h, b) => parts[b](q, k, h, b);
    case "Blocked": {
      const block = (x) => Math.floor(x / p.block_size);
      return (q, k, h, b) => parts[0](block(q), block(k), h, b);
    }
    default: return null;
  }
}

// ---- section 2: positions ---------------------------------------------------------------------

const perRow = (x, b) => (Array.isArray(x) ? x[b] : x);
const first = ({ sizes: { m, n }, attributes: a }, b) => perRow(a.q_start ?? n - m, b);
function position({ sizes: { n }, attributes: a }, b, j) {
  if (j >= perRow(a.kv_lengths ?? n, b)) return -1;
  const where = a.kv_positions;
  return where ? (Array.isArray(where[0]) ? where[b][j] : where[j]) : j;
}

// ---- section 3: the value ---------------------------------------------------------------------

function biasAt({ shape }, index) {
  return shape.reduce((at, extent, x) =>
    at * extent + (extent === 1 ? 0 : index[x + 4 - shape.length]), 0);
}

function attention(c, seen) {
  const { b: B, h: H, g: G, m: M, n: N, d: D, e: E } = c.sizes;
  const { q, k, v, bias, alibi_slopes: slopes, sink_logits: sinks } = c.tensors;
  const scale = f(c.attributes.scale ?? 1 / Math.sqrt(D)), cap = c.attributes.softcap;
  const out = new Float32Array(B * H * M * E), lse = new Float32Array(B * H * M);
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) for (let i = 0; i < M; i++) {
    const row = (b * H + h) * M + i, base = (b * G + Math.floor(h / (H / G))) * N, keys = [];
    for (let j = 0; j < N; j++) {
      const times = seen(b, h, i, j);
      if (!times) continue;
      let s = 0;
      for (let x = 0; x < D; x++) s = f(s + f(q.data[row * D + x] * k.data[(base + j) * D + x]));
      s = f(scale * s);
      if (cap) s = f(cap * f(Math.tanh(f(s / cap))));
      if (bias) s = f(s + bias.data[biasAt(bias, [b, h, i, j])]);
      if (slopes) s = f(s - f(slopes.data[h] * Math.abs(first(c, b) + i - position(c, b, j))));
      if (times > 1) s = f(s + f(Math.log(times)));
      if (s !== -Infinity) keys.push([j, s]);
    }
    const sink = sinks ? sinks.data[h] : -Infinity;
    const peak = keys.reduce((high, [, s]) => Math.max(high, s), sink); // NaN if any is
    let total = sink === -Infinity ? 0 : f(Math.exp(f(sink - peak)));
    for (const [j, s] of keys) {
      const w = f(Math.exp(f(s - peak)));
      total = f(total + w);
      for (let x = 0; x < E; x++) out[row * E + x] += f(w * v.data[(base + j) * E + x]);
    }
    for (let x = 0; x < E; x++) out[row * E + x] = keys.length ? out[row * E + x] / total : 0;
    lse[row] = total === 0 ? -Infinity : peak + f(Math.log(total));
  }
  return { out, lse };
}

let total = 0, wrong = 0, made = 0;
for (const c of cases(process.argv[2])) {
  const { b: B, h: H, m: M, n: N } = c.sizes, text = counts(c), { batch, heads } = c.mask;
  const seen = (b, h, i, j) => text[(((b % batch) * heads + (h % heads)) * M + i) * N + j];
  const says = rule(c.pattern), what = [];
  for (let b = 0; says && b < B; b++) for (let h = 0; h < H; h++) for (let i = 0; i < M; i++)
    for (let j = 0; j < N; j++) {
      const at = position(c, b, j), times = at < 0 ? 0 : says(first(c, b) + i, at, h, b);
      if (times !== seen(b, h, i, j)) what[0] = "mask";
    }
  const got = attention(c, seen);
  for (const name of ["out", "lse"]) if (!passes(got[name], c, name, "float32")) what.push(name);
  if (what.length) console.log(`wrong: ${c.id}: ${what.join(" ")}`);
  total += 1, made += Boolean(says), wrong += what.length > 0;
}
console.log(`${total} cases, ${wrong} wrong; ${made} masks made from patterns`);
process.exitCode = wrong > 0 || total === 0 ? 1 : 0;
