/**
 * Checks that need the loaded model: its name, its context, the salt and priority of a request.
 * @module
 */
import { show } from '../base/errors.ts';
import type { Placement } from '../engine/rpc.ts';
import { ApiError, badRequest } from './api-error.ts';
import type { ServedModel } from './engine-host.ts';
import type { Exchange } from './exchange.ts';
import type { SamplingFields } from './sampling-fields.ts';
import { saltOf } from './tenants.ts';

/**
 * The model that the request names.
 * @throws ApiError 404 for another one, 503 while it is not loaded.
 */
export function servedModel(exchange: Exchange, name: string): ServedModel {
  const model = exchange.parts.host.ready;
  if (model.names.includes(name)) return model;
  const known = model.names.map((each) => JSON.stringify(each)).join(', ');
  throw new ApiError(404, `model ${show(name)} is not served here, only ${known}`, {
    param: 'model',
    code: 'model_not_found',
  });
}

/**
 * Most new tokens of a sample.
 * @param field the name under which the client gave `wanted`
 * @throws ApiError for more than the context or the operator allows.
 */
export function maxTokensOf(
  exchange: Exchange,
  { info }: ServedModel,
  field: string,
  wanted: number | null | undefined,
  fallback: number,
): number {
  const limit = Math.min(info.config.contextLength, exchange.parts.settings.maxTokens ?? Infinity);
  if (wanted == null) return Math.min(fallback, limit);
  if (wanted <= limit) return wanted;
  throw badRequest(
    `${field} must be an integer between 1 and ${limit} for this model, got ${wanted}`,
    field,
    'integer_above_max_value',
  );
}

/**
 * Where in the cache and in the queue the request belongs. One that names a prefix lives under
 * the prefix's salt; a public prefix lies under nobody's, and what follows it under the tenant's.
 * @throws ApiError for a salt that is not the prefix's, as it could not be honoured.
 */
export function placementOf(
  exchange: Exchange,
  body: Pick<SamplingFields, 'cache_salt' | 'priority'> & {
    readonly prefix_id?: string | null | undefined;
  },
): Placement {
  const { tenant, parts } = exchange;
  const priority = body.priority ?? 0;
  let salt = saltOf(tenant, body.cache_salt);
  if (body.prefix_id != null) {
    const prefix = parts.prefixes.use(body.prefix_id, tenant, 'prefix_id');
    if (!prefix.public && body.cache_salt == null) salt = prefix.salt;
    if (!prefix.public && salt !== prefix.salt) {
      throw badRequest('cache_salt must be the one that the prefix was made with', 'cache_salt');
    }
  }
  return { priority, ...(salt === '' ? {} : { salt }) };
}
