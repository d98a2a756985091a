/**
 * After tsc: copies what is not TypeScript (kernel sources, the dashboard's page) next to the
 * emitted JavaScript, compiles the page's scripts, which know a browser instead of Node, and the
 * WebAssembly kernels. Runs from the output folder it fills, whichever that is.
 * @module
 */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
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

buildPage();

/** The page's files, its scripts and the chart library, all in one folder. */
function buildPage(): void {
  const page = 'src/server/dashboard/page';
  const into = join(out, page);
  mkdirSync(into, { recursive: true });
  for (const file of readdirSync(into)) rmSync(join(into, file), { recursive: true });
  for (const file of readdirSync(join(root, page))) {
    if (/\.(html|css|svg)$/.test(file)) cpSync(join(root, page, file), join(into, file));
  }
  const uplot = join(root, 'node_modules/uplot/dist');
  cpSync(join(uplot, 'uPlot.esm.js'), join(into, 'uplot.js'));
  cpSync(join(uplot, 'uPlot.min.css'), join(into, 'uplot.css'));
  cpSync(join(uplot, '../LICENSE'), join(into, 'uplot.LICENSE.txt'));
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const words = [tsc, '-p', join(root, page), '--outDir', into];
  execFileSync(process.execPath, words, { stdio: 'inherit' });
}

const kernels = 'src/backend/cpu/kernels';
await buildWasm(join(root, kernels), join(out, kernels), join(root, 'node_modules/.cache'));
