/**
 * `flashforge/server`: the OpenAI-compatible server as a library.
 *
 * @example
 * import { startServer } from 'flashforge/server'
 * const server = await startServer({ port: 8000 })
 * await server.loaded
 * console.log(server.url, server.models)
 * await server.close()
 * @module
 */
export { FlashForgeError } from './base/errors.ts';
export { type ApiServer, startServer } from './server/server.ts';
export type { ServerOptions } from './server/server-options.ts';
