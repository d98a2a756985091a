/**
 * Descriptors of matrices for TMA (CUtensorMap), which copies their tiles to shared memory.
 * @module
 */
import type { Cuda } from './driver.ts';

export const TENSOR_MAP_BYTES = 128;
/** Columns of a tile: 128 bytes, the widest swizzle. */
export const TENSOR_TILE_COLUMNS = 64;
/** Of CUtensorMap: alignment, 16-bit elements, that swizzle, 256 bytes a read of L2. */
const ALIGNMENT = 64;
const ELEMENTS_16_BITS = 1;
const SWIZZLE_128 = 3;
const PROMOTION_256 = 3;

/**
 * How TMA reads a matrix of 16-bit elements, (rows, columns) row after row: in tiles of
 * `tileRows` x 64 elements. The bytes go into a kernel's parameters as they are.
 */
export function tensorMap(
  cuda: Cuda,
  address: bigint,
  rows: number,
  columns: number,
  tileRows: number,
): Uint8Array {
  const memory = new Uint8Array(new ArrayBuffer(TENSOR_MAP_BYTES + ALIGNMENT));
  const skip = Number(-cuda.addressOf(memory) & BigInt(ALIGNMENT - 1));
  const map = memory.subarray(skip, skip + TENSOR_MAP_BYTES);
  cuda.check(
    'cuTensorMapEncodeTiled',
    ...[map, ELEMENTS_16_BITS, 2, address],
    BigUint64Array.of(BigInt(columns), BigInt(rows)),
    BigUint64Array.of(BigInt(columns * 2)),
    Uint32Array.of(TENSOR_TILE_COLUMNS, tileRows),
    Uint32Array.of(1, 1),
    ...[0, SWIZZLE_128, PROMOTION_256, 0],
  );
  return map;
}
