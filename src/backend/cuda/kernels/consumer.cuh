/*
 * The consumers: groups of four warps that each hold up to 64 query vectors and their running
 * softmax. Items with more query vectors than that are shared out by rows; otherwise the groups
 * take turns at the tiles and combine their states at the end of the item.
 */
#pragma once
#include "product-kv8.cuh"
#include "product-wgmma.cuh"
#include "rows.cuh"

/* Named barriers of the block; 1 and 2 belong to the groups. */
constexpr int kBarrierStateFull = 3;
constexpr int kBarrierStateFree = 4;
constexpr int kBarrierMerge = 5;

template <class Shape>
struct Consumer {
  static constexpr int kHeadDim = Shape::kHeadDim;
  static constexpr int kBlocks = kHeadDim / 8;
  static constexpr int kScoreBlocks = Shape::kTile / 8;
  static constexpr int kSteps = Shape::kTile / 16;
  static constexpr int kEntries = Shape::kTile / kUnitTokens;

  const Attention& a;
  typename Shape::Shared& shared;
  int group; /* of warps */
  int warp;  /* within the group */
  int lane;
  Rows<Shape> rows{a};
  Softmax<Shape> softmax{a};
  u32 stage = 0, parity = 0; /* of the current tile in the ring */

  /* State of the current item. */
  Item item;
  float o[kBlocks][4];

  __device__ bool shares_rows() const { return Rows<Shape>::shared_out(item); }

  __device__ void group_sync() const { block_sync(1 + group, 128); }

  /* Begins an item, without reading anything of it. */
  __device__ void begin(const Item& next) {
    item = next;
    rows.begin(item, group, warp, lane);
    softmax.begin(item.kv_head);
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] = 0.0f;
  }

  /*
   * Starts the copy of an item's query vectors of this group to where they are read from: to
   * shared memory, or to the L2 cache where registers hold them. Kept short: code is cold, too.
   */
  __device__ void fetch_queries(const Item& of, int buffer) {
    constexpr int kPerGroup = Rows<Shape>::kPerGroup;
    const int first = Rows<Shape>::shared_out(of) ? group * kPerGroup : 0;
    const int left = of.row_count - first;
    const int vectors = (left < kPerGroup ? left : kPerGroup) * Shape::kGroup;
    const u16* from = a.q + static_cast<u64>(of.row_begin + first) * a.q_stride +
                      of.kv_head * Shape::kGroup * kHeadDim;
    if constexpr (Shape::kQueryBuffers == 0) {
      /* A lane for each cache line: two of a vector, or one. */
      constexpr u32 kLines = (kHeadDim + 63) / 64;
      const u32 vector = threadIdx.x % 128 / kLines, line = threadIdx.x % kLines;
      if (vector < vectors)
        prefetch_l2(from + vector / Shape::kGroup * a.q_stride +
                    (vector % Shape::kGroup * kHeadDim + line * 64));
    } else {
      const u32 to = smem_address(shared.bulk.q[group][buffer]);
#pragma unroll 1
      for (int i = warp * 32 + lane; i < vectors * kBlocks; i += 128) {
        const int vector = i / kBlocks, chunk = i % kBlocks;
        copy16(to + ((vector >> 3) * kBlocks + chunk) * 128 + (vector & 7) * 16,
               from + (vector / Shape::kGroup) * a.q_stride +
                   (vector % Shape::kGroup) * kHeadDim + chunk * 8);
      }
      copy_commit();
    }
  }

  /* Removes the scores of the tile in stage `of` that are not for these rows. */
  __device__ void mask(float (&s)[kScoreBlocks][4], u32 of) const {
#pragma unroll
    for (int e = 0; e < kEntries; e++) rows.mask(s, e * 2, shared.entries[of][e], lane);
  }

  __device__ void shrink(const float (&scale)[2]) {
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] *= scale[i >> 1];
  }

  /* What the current tile asks of this group. */
  enum Use { kSkip, kPlain, kMask, kAlone };

  /* Decided by votes, though all lanes agree: the compiler then knows that they do. */
  __device__ Use use_of_tile() const {
    const int kind = shared.kind[stage];
    if (__any_sync(~0u, kind == kTilePlain)) return kPlain;
    if (__any_sync(~0u, kind == kTileAlone)) return kAlone;
    const int first = rows.first, end = rows.first + rows.count;
    bool any = false, plain = true;
#pragma unroll
    for (int e = 0; e < kEntries; e++) {
      const Entry entry = shared.entries[stage][e];
      const int lo = entry.rows & 0xffff, hi = entry.rows >> 16;
      any |= lo < end && hi > first;
      plain &= lo <= first && hi >= end && entry.tokens == kWholeUnit;
    }
    if (!__any_sync(~0u, any)) return kSkip;
    return __any_sync(~0u, plain) ? kPlain : kMask;
  }

  __device__ bool is_mine(int t) const {
    return Shape::kGroups == 1 || shares_rows() || t % Shape::kGroups == group;
  }

  __device__ u32 kv_address(u32 of) const { return smem_address(shared.bulk.kv[of]); }

  __device__ void next_stage() {
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }

  __device__ void wait_for_tile() const {
    barrier_wait(smem_address(&shared.full[stage]), parity, a.abort_flag, Shape::kAbortFull);
  }

  __device__ void release(u32 of) const {
    __syncwarp();
    if (FF_EVERY_LANE || lane == 0) barrier_arrive(smem_address(&shared.empty[of]));
  }

  /* Goes on to the next tile that the group computes on together; false at the item's end. */
  __device__ bool advance(int& t, int tiles, Use& use) {
    for (; t < tiles; t++, next_stage()) {
      wait_for_tile();
      if (is_mine(t)) {
        use = use_of_tile();
        if (use == kAlone) consume_narrow();
        if (use == kPlain || use == kMask) return true;
      }
      release(stage);
    }
    return false;
  }

#if FF_HOPPER && !FF_PORTABLE
  using Product = WgmmaProduct<kHeadDim, Shape::kTile>;

  u32 query[Product::kQuerySteps][4]; /* the item's query vectors, if they are held */

  /* Reads the item's query vectors as A fragments; padding is zero. */
  __device__ void hold_queries(u32) {
    if constexpr (Product::kHoldsQueries) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const bool real = rows.row(half) != Rows<Shape>::kPadding;
        const u32 row = item.row_begin + rows.row(half);
        const int head = item.kv_head * Shape::kGroup + rows.head_of(half);
        const u16* from = a.q + static_cast<u64>(row) * a.q_stride + head * kHeadDim +
                          (lane & 3) * 2;
#pragma unroll
        for (int i = 0; i < Product::kQuerySteps * 2; i++)
          query[i / 2][i % 2 * 2 + half] = real ? *reinterpret_cast<const u32*>(from + i * 8) : 0;
      }
    }
  }

  /*
   * The current tile's entries are for the rows of one warp or two each: this warp takes those
   * that are for it, by mma.sync, while others take theirs.
   */
  __device__ void consume_narrow() {
    if constexpr (Product::kHoldsQueries) {
      using Narrow = MmaProduct<kHeadDim, Shape::kTile>;
      u32 mine = shared.alone[stage] >> (group * 4 + warp) * kEntries & ((1 << kEntries) - 1);
#pragma unroll 1
      for (; mine != 0; mine &= mine - 1) {
        const int which = __ffs(mine) - 1;
        const u32 kv = kv_address(stage) + which * 2 * Narrow::kGroupBytes;
        float s[2][4], e[2][4], scale[2];
        u32 p[1][4];
        Narrow::narrow_scores(s, query, kv, lane);
        rows.mask(s, 0, shared.entries[stage][which], lane);
        softmax.cap(s);
        if (softmax.soften(s, e, scale)) shrink(scale);
        pack(e, p);
        Narrow::narrow_values(o, p, kv, lane);
      }
    }
  }

  /* Issues the scores of the current tile. */
  __device__ void issue_scores(float (&s)[kScoreBlocks][4], u32 q) const {
    if constexpr (Product::kHoldsQueries)
      Product::scores(s, query, kv_address(stage));
    else
      Product::scores(s, q, kv_address(stage));
  }

  /*
   * Where both groups have rows of their own, Q K^T of the next tile and P V of this one are
   * issued together and the softmax runs meanwhile. Where the groups take turns, reading KV takes
   * longer than computing, and holding two tiles would slow it down.
   */
  __device__ void consume_tiles(u32 q) {
    const int tiles = (item.entry_count + kEntries - 1) / kEntries;
    const bool shares = shares_rows();
    Use use = kSkip;
    float s[kScoreBlocks][4], e[kScoreBlocks][4], scale[2];
    u32 p[kSteps][4];
    for (int t = 0; advance(t, tiles, use);) {
      issue_scores(s, q);
      wgmma_wait<0>();
      if (use == kMask) mask(s, stage);
      softmax.cap(s);
      if (softmax.soften(s, e, scale)) shrink(scale);
      pack(e, p);
      u32 held = stage;
      t++, next_stage();
      bool more = shares && follows(t, tiles, use);
      while (more) {
        issue_scores(s, q);
        Product::values(o, p, kv_address(held));
        const u32 done = held;
        held = stage;
        t++, next_stage();
        const bool plain_next = t < tiles && plain_is_here();
        wgmma_wait<1>();
        if (use == kMask) mask(s, held);
        softmax.cap(s);
        softmax.exponentiate(s, e);
        pin(e);
        /* This also keeps the compiler from doing all that after the wait. */
        use = kPlain;
        more = __all_sync(~0u, plain_next) || follows(t, tiles, use);
        wgmma_wait<0>();
        release(done);
        if (softmax.settle(s, e, scale)) shrink(scale);
        pack(e, p);
      }
      Product::values(o, p, kv_address(held));
      wgmma_wait<0>();
      release(held);
    }
    softmax.finish();
  }

  /* Whether the current tile has arrived and is plain. Does not wait. */
  __device__ bool plain_is_here() const {
    return barrier_test(smem_address(&shared.full[stage]), parity) &&
           shared.kind[stage] == kTilePlain;
  }

  /* True if there is a next tile and the group computes on it together. */
  __device__ bool follows(int t, int tiles, Use& use) {
    if (t >= tiles) return false;
    wait_for_tile();
    use = use_of_tile();
    return use == kPlain || use == kMask;
  }
#else
  using Product = PortableProduct<kHeadDim, Shape::kTile>;

  __device__ void hold_queries(u32 q) {
    if constexpr (Shape::kKv8) {
      Product::arrange(q, warp * 32 + lane);
      group_sync();
    }
  }
  __device__ void consume_narrow() {}

  __device__ void consume_tiles(u32 q) {
    const int tiles = (item.entry_count + kEntries - 1) / kEntries;
    const bool padding = warp * 16 >= rows.count * Shape::kGroup;
    Use use = kSkip;
    for (int t = 0; advance(t, tiles, use);) {
      if (!padding) {
        float s[kScoreBlocks][4], scale[2];
        u32 p[kSteps][4];
        Product::scores(s, q, kv_address(stage), warp, lane);
        if (use == kMask) mask(s, stage);
        softmax.cap(s);
        const bool grows = softmax.soften_exactly(s, scale);
        pack(s, p);
        if (grows) shrink(scale);
        Product::values(o, p, kv_address(stage), lane);
      }
      release(stage), t++, next_stage();
    }
    softmax.finish();
  }
#endif
};
