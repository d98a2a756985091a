/**
 * Several completions over one connection, each of which can be stopped alone: browsers open six
 * connections to a server, and the playground shows more branches than that.
 * @module
 */
import { z } from 'zod';
import { ApiError, toApiError } from '../api-error.ts';
import { type CompletionRequest, completionRequest } from '../completion-schema.ts';
import { completions } from '../completions.ts';
import { Exchange } from '../exchange.ts';
import type { Route } from '../route.ts';
import { streamResponse } from '../stream-response.ts';
import type { Tenant } from '../tenants.ts';

const BRANCHES_MAX = 32;

const id = z
  .string()
  .regex(/^[A-Za-z0-9_-]{16,64}$/)
  .describe('Chosen by the client, hard to guess; names the stream when a branch is stopped.');
const branchesRequest = z.strictObject({
  id,
  requests: z
    .array(completionRequest)
    .min(1)
    .max(BRANCHES_MAX)
    .describe('Each runs as by /v1/completions with stream: true.'),
});
const branchEvent = z.object({
  branch: z.int().describe('Index in `requests`.'),
  event: z.unknown().describe('An event of /v1/completions, an error body, or null at the end.'),
});
type BranchEvent = z.output<typeof branchEvent>;

const stopRequest = z.strictObject({
  branch: z.int().min(0).nullish().describe('Default: all of them.'),
});
const stopResponse = z.object({ stopped: z.int().describe('Branches that this call has ended.') });

interface OpenStream {
  readonly tenant: string;
  readonly branches: readonly Exchange[];
}

/** Streams that are under way, by the id that their client has chosen. */
export class BranchStreams {
  readonly #open = new Map<string, OpenStream>();

  /** @throws ApiError 409 for an id in use. */
  open(id: string, { id: tenant }: Tenant, branches: readonly Exchange[]): void {
    if (this.#open.has(id)) {
      throw new ApiError(409, `stream ${JSON.stringify(id)} exists already`, { param: 'id' });
    }
    this.#open.set(id, { tenant, branches });
  }

  close(id: string): void {
    this.#open.delete(id);
  }

  /**
   * Ends one branch of a stream, or all of them; those that have ended stay as they are.
   * @throws ApiError 404 for a stream that is unknown, over or somebody else's.
   */
  stop(id: string, tenant: Tenant, branch: number | null): number {
    const stream = this.#open.get(id);
    if (stream === undefined || stream.tenant !== tenant.id) {
      throw new ApiError(404, `stream ${JSON.stringify(id)} is unknown or over`, { param: 'id' });
    }
    const chosen = stream.branches.filter(
      ({ signal }, index) => !signal.aborted && (branch === null || index === branch),
    );
    for (const each of chosen) each.stop('gone');
    // Those that had finished before have not heard of it.
    return chosen.filter(({ signal }) => signal.aborted).length;
  }
}

function runBranches(exchange: Exchange): Promise<Response> {
  const { id, requests } = exchange.body as z.output<typeof branchesRequest>;
  const { branchStreams } = exchange.parts;
  return streamResponse(exchange, 'requests', async (send) => {
    const branches = requests.map((request, index) => branchOf(exchange, request, index));
    try {
      branchStreams.open(id, exchange.tenant, branches);
    } catch (error) {
      for (const each of branches) each.finish();
      throw error;
    }
    const stopAll = (): void => {
      for (const each of branches) each.stop(exchange.reason ?? 'gone');
    };
    if (exchange.signal.aborted) stopAll();
    exchange.signal.addEventListener('abort', stopAll, { once: true });
    try {
      await Promise.all(
        branches.map((each, branch) =>
          relay(each, (event) => send({ branch, event } satisfies BranchEvent)),
        ),
      );
    } finally {
      branchStreams.close(id);
      exchange.signal.removeEventListener('abort', stopAll);
    }
  });
}

/** An exchange of its own for a branch; it ends with the whole one at the latest. */
function branchOf(
  { id, tenant, parts }: Exchange,
  request: CompletionRequest,
  index: number,
): Exchange {
  const body = { ...request, stream: true };
  const client = new AbortController().signal;
  return new Exchange({ id: `${id}-${index}`, tenant, parts, params: {}, body, client });
}

/** Runs one branch; its errors are events, as the others go on. */
async function relay(child: Exchange, send: (event: unknown) => void): Promise<void> {
  try {
    const { body } = await completions(child);
    for await (const event of eventsOf(body!)) send(event);
  } catch (error) {
    child.finish();
    send(toApiError(child.errorOf(error)).body);
  }
  send(null);
}

/** The events of a completion's stream, without the last one that says that it is over. */
async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<unknown> {
  const decoder = new TextDecoder();
  let text = '';
  for await (const bytes of body) {
    text += decoder.decode(bytes, { stream: true });
    const events = text.split('\n\n');
    text = events.pop()!;
    for (const event of events) {
      if (event.startsWith('data: {')) yield JSON.parse(event.slice('data: '.length));
    }
  }
}

function stopBranch({ parts, params, tenant, body }: Exchange): Response {
  const { branch } = body as z.output<typeof stopRequest>;
  const stopped = parts.branchStreams.stop(params.id, tenant, branch ?? null);
  return Response.json({ stopped } satisfies z.output<typeof stopResponse>);
}

export const branchRoutes: readonly Route[] = [
  {
    method: 'POST',
    path: '/dashboard/branches',
    operation: 'runBranches',
    summary: 'Several completions as one stream of events, for the playground',
    tag: 'operation',
    body: { name: 'BranchesRequest', schema: branchesRequest },
    status: 200,
    answer: 'text/event-stream',
    event: { name: 'BranchEvent', schema: branchEvent },
    errors: [404, 408, 409],
    access: 'key',
    handle: runBranches,
  },
  {
    method: 'POST',
    path: '/dashboard/branches/{id}/stop',
    operation: 'stopBranch',
    summary: 'Ends one branch of such a stream',
    tag: 'operation',
    body: { name: 'StopRequest', schema: stopRequest },
    status: 200,
    answer: { name: 'StopResponse', schema: stopResponse },
    errors: [404],
    access: 'key',
    handle: stopBranch,
  },
];
