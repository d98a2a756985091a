/**
 * After tsc: copies what is not TypeScript (kernel sources) next to the emitted JavaScript and
 * compiles the WebAssembly kernels. Runs from the output folder it fills, whichever that is.
 * @module
 */
import { cpSync, existsSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { buildWasm } from './wasm.ts';

const out = resolve(import.meta.dirname, '..');
const root = findRoot(out);

function findRoot(from: string): string {
  let folder = from;
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

const KERNEL_SOURCE = /\.(c|h|cu|cuh)$/;

// What was deleted or renamed since the last build must not be compiled with the rest.
for (const file of readdirSync(join(out, 'src'), { recursive: true, encoding: 'utf8' })) {
  if (KERNEL_SOURCE.test(file) && !existsSync(join(root, 'src', file)))
    rmSync(join(out, 'src', file));
}
for (const file of readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })) {
  if (KERNEL_SOURCE.test(file)) cpSync(join(root, 'src', file), join(out, 'src', file));
}

const kernels = 'src/backend/cpu/kernels';
await buildWasm(join(root, kernels), join(out, kernels), join(root, 'node_modules/.cache'));
