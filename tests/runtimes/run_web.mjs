// Runs one ONNX file in onnxruntime-web (WebAssembly) under node, once for each set of inputs.
//
// stdin:  {"model": base64, "feeds": [{name: {"type", "dims", "data": base64}}]}, or {} for the
//         version alone
// stdout: {"version", "refused"} where the file does not load, else {"version", "outputs": [...]}:
//         {"dims", "data": base64} of the first output, or {"error"}, for each set of inputs
//
// onnxruntime-web is found in the folder that ONNXRUNTIME_WEB names, else as node finds packages.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };
const folder = process.env.ONNXRUNTIME_WEB;
const found = createRequire(folder ? join(folder, "package.json") : import.meta.url);
const ort = found("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

function tensor({ type, dims, data }) {
  const bytes = new Uint8Array(Buffer.from(data, "base64")); // a copy: aligned
  return new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}

async function output(session, feed) {
  const inputs = Object.entries(feed).map(([name, one]) => [name, tensor(one)]);
  try {
    const y = (await session.run(Object.fromEntries(inputs)))[session.outputNames[0]];
    const { buffer, byteOffset, byteLength } = y.data;
    const data = Buffer.from(buffer, byteOffset, byteLength).toString("base64");
    return { dims: y.dims, data };
  } catch (error) {
    return { error: error.message };
  }
}

async function answer({ model, feeds }) {
  const version = ort.env.versions.web;
  if (model === undefined) return { version };
  const options = { executionProviders: ["wasm"] };
  let session;
  try {
    session = await ort.InferenceSession.create(Buffer.from(model, "base64"), options);
  } catch (error) {
    return { version, refused: error.message };
  }
  const outputs = [];
  for (const feed of feeds) outputs.push(await output(session, feed));
  return { version, outputs };
}

console.log(JSON.stringify(await answer(JSON.parse(readFileSync(0, "utf8")))));
