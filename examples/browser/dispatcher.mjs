// Runs an exported folder with onnxruntime-web, one image at a time. A later stage is fetched when the first image needs it.
// What manifest.json says: docs/manifest.md. The reference for every answer is s2d_runtime.Dispatcher.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would need cross-origin isolation

const TENSORS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array };

// The exit rule of docs/manifest.md ("The exit rule"): float32 against float32; NaN never leaves.
const leaves = (confidence, threshold) => confidence >= Math.fround(threshold);

export class Dispatcher {
  #sessions = []; // of each stage, a promise from the moment at which it is first needed

  constructor(folder, manifest) {
    this.folder = folder;
    this.manifest = manifest;
    this.onfetch = () => {}; // gets {stage, bytes, ms} when a stage has been loaded
  }

  /** The dispatcher of the folder at a URL; only manifest.json is read. */
  static async open(folder) {
    const url = new URL("manifest.json", new URL(folder, document.baseURI));
    const manifest = await (await get(url)).json();
    if (manifest.format !== "s2d-convert" || manifest.version !== 1) throw new Error(`${url}: not format 1 of s2d-convert`);
    if (!(manifest.input.dtype in TENSORS)) throw new Error(`${url}: ${manifest.input.dtype} images are not supported here`);
    return new Dispatcher(url, manifest);
  }

  /** Resolves when stage 1 is there, so that the first image need not wait for it. */
  async ready() {
    await this.#session(0);
  }

  /** The policy that serves a budget: the largest calibrated one that is not above it, or else the smallest. */
  policyFor(budget) {
    const policies = [...this.manifest.policies].sort((a, b) => a.budget - b.budget);
    return policies.findLast((policy) => policy.budget <= budget + 1e-9) ?? policies[0];
  }

  /** {output, stage, confidence} for one image; pixels: typed array in the order of the manifest's input shape. */
  async run(pixels, budget = this.manifest.default_budget) {
    const { input, stages } = this.manifest;
    const { thresholds } = this.policyFor(budget);
    const shape = [1, ...input.shape.slice(1)];
    const tensors = { [input.name]: new ort.Tensor(input.dtype, TENSORS[input.dtype].from(pixels), shape) };
    for (const [k, stage] of stages.entries()) {
      const session = await this.#session(k);
      const reads = [...(stage.image ? [input.name] : []), ...stage.links_in];
      const found = await session.run(Object.fromEntries(reads.map((name) => [name, tensors[name]])));
      const confidence = found.confidence.data[0];
      if (k === stages.length - 1 || leaves(confidence, thresholds[k])) {
        return { output: Array.from(found.output.data), stage: k + 1, confidence };
      }
      for (const link of stage.links_out) tensors[link.name] = found[link.name];
    }
  }

  #session(k) {
    return (this.#sessions[k] ??= this.#load(k));
  }

  async #load(k) {
    const began = performance.now();
    const { file, sha256 } = this.manifest.stages[k];
    const bytes = await (await get(new URL(file, this.folder))).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== sha256) throw new Error(`${file}: its sha256 is not the one in the manifest; copy the folder again`);
    const session = await ort.InferenceSession.create(bytes);
    this.onfetch({ stage: k + 1, bytes: bytes.byteLength, ms: performance.now() - began });
    return session;
  }
}

async function get(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}
