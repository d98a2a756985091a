/**
 * The bytes of a kernel's parameters.
 * @module
 */

/**
 * Kernel parameters in C's layout: p = 8 bytes, i = int, f = float. The driver wants the exact
 * size, so that a struct must end without padding.
 */
export function packArguments(letters: string, values: readonly (number | bigint)[]): Uint8Array {
  const bytes = new Uint8Array(letters.length * 8);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (let k = 0; k < letters.length; k++) {
    const size = letters[k] === 'p' ? 8 : 4;
    at = Math.ceil(at / size) * size;
    if (letters[k] === 'p') view.setBigUint64(at, BigInt(values[k]), true);
    else if (letters[k] === 'i') view.setInt32(at, Number(values[k]), true);
    else view.setFloat32(at, Number(values[k]), true);
    at += size;
  }
  return bytes.slice(0, at);
}
