/*
 * Tree attention: softmax(Q K^T) V of every row over its path in the prefix tree, in one launch.
 * A persistent grid of one block a multiprocessor executes the plan: in each block one warp
 * copies KV tiles into a ring in shared memory and groups of four warps compute on them.
 *
 * Variant constants come from the compiler's command line (see variants.ts).
 */
#include "epilogue.cuh"
#include "plan-step.cuh"
#include "producer.cuh"

struct Shape {
  static constexpr int kHeadDim = FF_HEAD_DIM;
  static constexpr int kGroup = FF_GROUP; /* query heads of one KV head */
  static constexpr int kPageTokens = FF_PAGE_TOKENS;
  static constexpr int kTile = FF_TILE;     /* tokens of one stage */
  static constexpr int kStages = FF_STAGES; /* of the ring */
  static constexpr int kGroups = FF_GROUPS; /* of four consumer warps */
  static constexpr bool kSoftcap = FF_SOFTCAP;
  static constexpr bool kKv8 = FF_KV8; /* KV as e4m3, with a scale a head for K and for V */
  static constexpr int kTokenBytes = kHeadDim * (kKv8 ? 2 : 4); /* K and V of one head */
  /* Queries of the next item arrive while this one is computed on; 0 where registers hold them. */
  static constexpr int kQueryBuffers = FF_QUERY_BUFFERS;
  /* What the abort flag says: which wait did not end. */
  static constexpr int kAbortEmpty = 1, kAbortFull = 2, kAbortMerge = 3;

  static constexpr int kQueryBytes = kQueryBuffers > 0 ? 64 * kHeadDim * 2 : 16;

  struct Shared {
    struct Bulk {
      unsigned char kv[kStages][kTile * kTokenBytes];
      unsigned char q[kGroups][kQueryBuffers > 0 ? kQueryBuffers : 1][kQueryBytes];
      unsigned char state[kGroups > 1 ? (kHeadDim * 64 + 512) * 4 : 16];
    } bulk;
    Entry entries[kStages][kTile / kUnitTokens];
    u64 full[kStages];
    u64 empty[kStages];
    int kind[kStages];  /* of each tile, and which warps have rows in which of its entries */
    u32 alone[kStages];
    int parity[kGroups];
  };
};

/* What a consumer warp does: its items, queries fetched one item ahead, then its merges. */
__device__ __forceinline__ void consume_items(const Attention& a, Shape::Shared& shared, int warp,
                                              int lane) {
  Consumer<Shape> consumer{a, shared, warp / 4, warp % 4, lane};
  const u32 buffer =
      smem_address(shared.bulk.kv) + warp * Merger<Shape>::kAtOnce * Merger<Shape>::kPartialBytes;
  Merger<Shape> merger{a, buffer, warp, lane};
  const LaunchCount count{a, shared.parity + warp / 4, Shape::kGroups};
  const Worker* worker = worker_of(a, blockIdx.x);
  const int items = __ldg(&worker->item_count);
  const Item* list = reinterpret_cast<const Item*>(a.image) + __ldg(&worker->item_begin);
  Item current = load_item(&worker->first), next = current;
  merger.open();
  dependency_wait(); /* for queries, and for the last launch's counters */
  Epilogue<Shape> epilogue{consumer};
  if (items > 0) consumer.fetch_queries(current, 0);
  u32 started = count.start();
  if (Shape::kQueryBuffers > 0 || items == 0) count.keep(started);
  for (int i = 0; i < items; i++) {
    consumer.begin(current);
    u32 q = 0;
    if (i + 1 < items && (Shape::kQueryBuffers == 0 || i == 0)) next = load_item(list + i + 1);
    if constexpr (Shape::kQueryBuffers > 0) {
      q = smem_address(shared.bulk.q[consumer.group][i & 1]);
      consumer.rows.read_records(current, warp % 4, lane); /* while queries are on their way */
      copy_wait<0>();
      fence_async_proxy();
      consumer.group_sync(); /* queries are here, and the last item's have been read by all */
      consumer.hold_queries(q);
      if (i + 1 < items) consumer.fetch_queries(next, (i + 1) & 1);
    } else {
      consumer.hold_queries(q);
      consumer.rows.read_records(current, warp % 4, lane);
      if (i == 0) count.keep(started);
    }
    consumer.consume_tiles(q);
    current = next;
    if (Shape::kQueryBuffers == 0 && i + 1 < items) consumer.fetch_queries(next, 0);
    if (Shape::kQueryBuffers > 0 && i + 2 < items) next = load_item(list + i + 2);
    if (epilogue.combine()) {
      epilogue.write();
      epilogue.announce();
    }
  }
  merger.open();
  merger.run(shared.parity + warp / 4);
}

extern "C" __global__ void __launch_bounds__(FF_THREADS, 1)
    ff_tree_attention(const __grid_constant__ Attention a) {
  extern __shared__ __align__(128) unsigned char raw[];
  typename Shape::Shared& shared = *reinterpret_cast<typename Shape::Shared*>(raw);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  dependents_launch();
  if (threadIdx.x < Shape::kStages) {
    barrier_init(smem_address(&shared.full[threadIdx.x]), FF_HOPPER ? 1 : 32);
    barrier_init(smem_address(&shared.empty[threadIdx.x]),
                 Shape::kGroups * (FF_EVERY_LANE ? 128 : 4));
  }
  fence_async_proxy();
  __syncthreads();

  if (warp >= Shape::kGroups * 4) {
#if FF_HOPPER
    if constexpr (Shape::kGroups == 2) registers_shrink<40>();
#endif
    if (warp == Shape::kGroups * 4) Producer<Shape>{a, shared, lane}.run();
  } else {
#if FF_HOPPER
    if constexpr (Shape::kGroups == 2) registers_grow<232>();
#endif
    consume_items(a, shared, warp, lane);
  }
}
