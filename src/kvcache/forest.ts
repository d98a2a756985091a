/**
 * One step's view of the prefix tree as flat arrays: what the planner and the kernels read.
 *
 * A *row* is one query token of the step (a decoding request has one row, a prefill chunk has one
 * row a token). Rows are sorted depth-first over the tree, so that the rows under any node are an
 * interval. A row attends to the tokens of every node on its path whose position is at most its
 * own; that one rule covers decode, causal prefill and requests that end at an inner node.
 * @module
 */

/** Structure of arrays; every array may be longer than its stated count. */
export interface Forest {
  /** Number of query rows. */
  readonly rows: number;
  /** (rows) absolute position of the row's token; it sees tokens at positions <= this. */
  readonly rowPosition: Int32Array;
  /** Number of requests; a request's rows are consecutive. */
  readonly requests: number;
  /** (requests + 1) first row of each request. */
  readonly requestRow: Int32Array;

  /** Number of nodes, in depth-first order: a parent stands before its children. */
  readonly nodes: number;
  /** (nodes) index of the parent, -1 for a root. */
  readonly parent: Int32Array;
  /** (nodes) absolute position of the node's first token. */
  readonly start: Int32Array;
  /** (nodes) tokens in the node, those written in this step included; may be 0. */
  readonly length: Int32Array;
  /** (nodes) first row under the node: rows rowBegin <= r < rowEnd have it on their path. */
  readonly rowBegin: Int32Array;
  /** (nodes) one past the last row under the node. */
  readonly rowEnd: Int32Array;

  /** (nodes) slot of the node's first token within its first page. */
  readonly firstSlot: Int32Array;
  /** (nodes + 1) where each node's page ids start in `pages`. */
  readonly pageBegin: Int32Array;
  /**
   * Physical page ids; token t of node n is in page
   * pages[pageBegin[n] + floor((firstSlot[n] + t) / pageSize)].
   */
  readonly pages: Int32Array;
}
