/**
 * The system's refusals in words: users read "no space is left on the disk", not ENOSPC.
 * @module
 */

const WORDS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file or folder',
  ENOTDIR: 'a part of the path is not a folder',
  EISDIR: 'it is a folder',
  EACCES: 'it is not permitted',
  EPERM: 'it is not permitted',
  EROFS: 'the disk is read-only',
  ENOSPC: 'no space is left on the disk',
  EDQUOT: 'no space is left on the disk',
  EFBIG: 'the file would be too large',
  EMFILE: 'too many files are open',
  ENAMETOOLONG: 'the name is too long',
  ELOOP: 'its links lead in a circle',
};

/** Why a file operation failed, as the end of a sentence; the error's own message else. */
export function fileReason(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const { code } = cause as NodeJS.ErrnoException;
  return (code === undefined ? undefined : WORDS[code]) ?? (cause.message || (code ?? cause.name));
}

/** Whether a program's complaint says that the disk is full, whatever else it says. */
export const saysDiskFull = (words: string): boolean =>
  /no space left on device|disk quota exceeded|not enough space/i.test(words);
