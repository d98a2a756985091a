/**
 * CUlaunchConfig as C lays it out, for launches that may overlap with their predecessor.
 * @module
 */
import type { LaunchShape } from './driver.ts';

/** The structure, and one CUlaunchAttribute behind it. */
const CONFIG_BYTES = 56;
const ATTRIBUTE_BYTES = 72;
export const LAUNCH_CONFIG_BYTES = CONFIG_BYTES + ATTRIBUTE_BYTES;
/** CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */
const PROGRAMMATIC = 6;

/** Fills `memory`, which lies at `address`. */
export function packOverlapping(
  memory: Uint8Array,
  address: bigint,
  { blocks, blocksY = 1, threads, sharedBytes = 0 }: LaunchShape,
  stream: bigint,
): void {
  const view = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  const words = [blocks, blocksY, 1, threads, 1, 1, sharedBytes];
  for (let i = 0; i < words.length; i++) view.setUint32(i * 4, words[i], true);
  view.setBigUint64(32, stream, true);
  view.setBigUint64(40, address + BigInt(CONFIG_BYTES), true);
  view.setUint32(48, 1, true);
  view.setUint32(CONFIG_BYTES, PROGRAMMATIC, true);
  view.setUint32(CONFIG_BYTES + 8, 1, true);
}
