/*
 * Tree attention: softmax(Q K^T) V of every row over its path in the prefix tree, in one launch.
 * A persistent grid of one block a multiprocessor executes the plan: in each block one warp
 * copies KV tiles into a ring in shared memory and groups of four warps compute on them.
 *
 * Variant constants come from the compiler's command line (see kernel-variants.ts).
 */
#include "epilogue.cuh"
#include "merge.cuh"
#include "producer.cuh"

struct Shape {
  static constexpr int kHeadDim = FF_HEAD_DIM;
  static constexpr int kGroup = FF_GROUP; /* query heads of one KV head */
  static constexpr int kPageTokens = FF_PAGE_TOKENS;
  static constexpr int kTile = FF_TILE;     /* tokens of one stage */
  static constexpr int kStages = FF_STAGES; /* of the ring */
  static constexpr int kGroups = FF_GROUPS; /* of four consumer warps */
  static constexpr bool kSoftcap = FF_SOFTCAP;
  /* What the abort flag says: which wait did not end. */
  static constexpr int kAbortEmpty = 1, kAbortFull = 2, kAbortMerge = 3;

  struct Shared {
    unsigned char kv[kStages][kTile * kHeadDim * 4];
    unsigned char q[kGroups][2][64 * kHeadDim * 2];
    unsigned char state[kGroups > 1 ? (kHeadDim * 64 + 512) * 4 : 16];
    Entry entries[kStages][kTile / kUnitTokens];
    u64 full[kStages];
    u64 empty[kStages];
  };
};

extern "C" __global__ void __launch_bounds__(FF_GROUPS * 128 + 32, 1)
    ff_tree_attention(const __grid_constant__ Attention a) {
  extern __shared__ __align__(128) unsigned char raw[];
  typename Shape::Shared& shared = *reinterpret_cast<typename Shape::Shared*>(raw);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  if (threadIdx.x < Shape::kStages) {
    barrier_init(smem_address(&shared.full[threadIdx.x]), FF_HOPPER ? 1 : 32);
    barrier_init(smem_address(&shared.empty[threadIdx.x]), Shape::kGroups * 4);
  }
  fence_async_proxy();
  __syncthreads();

  if (warp == Shape::kGroups * 4) {
    Producer<Shape>{a, shared, lane}.run();
    return;
  }

  Consumer<Shape> consumer{a, shared, warp / 4, warp % 4, lane};
  Epilogue<Shape> epilogue{consumer};
  const Worker* worker = worker_of(a, blockIdx.x);
  const int items = __ldg(&worker->item_count);
  const Item* list = reinterpret_cast<const Item*>(a.image) + __ldg(&worker->item_begin);
  Item item = load_item(&worker->first), next = item;
  if (items > 1) next = load_item(list + 1);
  if (items > 0) consumer.fetch_queries(item, 0);
  prefetch_merges(a, threadIdx.x, Shape::kGroups * 128);
  for (int i = 0; i < items; i++) {
    consumer.item = item;
    consumer.group_sync(); /* the other buffer's last reader is done */
    if (i + 1 < items) {
      consumer.fetch_queries(next, (i + 1) & 1);
      item = next;
      if (i + 2 < items) next = load_item(list + i + 2);
    } else {
      copy_commit();
    }
    consumer.take_rows();
    copy_wait<1>();
    fence_async_proxy();
    consumer.group_sync();
    consumer.consume_tiles(smem_address(shared.q[consumer.group][i & 1]));
    if (epilogue.combine()) {
      epilogue.write();
      epilogue.announce();
    }
  }
  merge_rows<Shape>(a, warp, lane);
}
