/*
 * The consumers: groups of four warps that each hold up to 64 query vectors and their running
 * softmax. Items with more query vectors than that are shared out by rows; otherwise the groups
 * take turns at the tiles and combine their states at the end of the item.
 */
#pragma once
#include "plan-image.cuh"
#include "product-kv8.cuh"
#include "product-wgmma.cuh"

/* Named barriers of the block; 1 and 2 belong to the groups. */
constexpr int kBarrierStateFull = 3;
constexpr int kBarrierStateFree = 4;
constexpr int kBarrierMerge = 5;
constexpr int kBarrierStagger = 6;

template <class Shape>
struct Consumer {
  static constexpr int kHeadDim = Shape::kHeadDim;
  static constexpr int kBlocks = kHeadDim / 8;
  static constexpr int kScoreBlocks = Shape::kTile / 8;
  static constexpr int kEntries = Shape::kTile / kUnitTokens;
  static constexpr int kRowsPerGroup = 64 / Shape::kGroup;
  static constexpr float kNone = -1e30f;   /* maximum of a row that has seen nothing */
  static constexpr float kMasked = -3e38f; /* a score that does not count: below kNone, scaled */
  static constexpr float kLog2e = 1.4426950408889634f;

  const Attention& a;
  typename Shape::Shared& shared;
  int group; /* of warps */
  int warp;  /* within the group */
  int lane;
  u32 tile = 0;

  /* State of the current item. */
  Item item;
  int row_first, row_count; /* this group's rows, relative to the item */
  int row[2];               /* this thread's two rows, relative to the item */
  int position[2];
  int slot[2]; /* where the two rows go, see RowRecord */
  RowRecord record; /* of the row whose number is this thread's, to tell its merge */
  float o[kBlocks][4];
  float maximum[2], sum[2];
  float head_scale; /* with 8-bit KV: scale_log2 times the scale of this KV head's keys */

  __device__ float scale_log2() const { return Shape::kKv8 ? head_scale : a.scale_log2; }

  __device__ bool shares_rows() const {
    return Shape::kGroups > 1 && item.row_count > kRowsPerGroup;
  }

  __device__ void group_sync() const { block_sync(1 + group, 128); }

  __device__ void take_rows() {
    row_first = shares_rows() ? group * kRowsPerGroup : 0;
    const int left = item.row_count - row_first;
    row_count = left < kRowsPerGroup ? left : kRowsPerGroup;
    if constexpr (Shape::kKv8) head_scale = a.scale_log2 * __ldg(a.kv_scale + item.kv_head * 2);
    const RowRecord* records = reinterpret_cast<const RowRecord*>(a.image) + item.row_record;
    const int mine = warp * 32 + lane;
    record = {-2, 0};
    if (mine < row_count) {
      const int2 v = __ldg(reinterpret_cast<const int2*>(records + row_first + mine));
      record = {v.x, v.y};
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      row[half] = row_first + (warp * 16 + (lane >> 2) + half * 8) / Shape::kGroup;
      const bool real = row[half] < row_first + row_count;
      position[half] = real ? __ldg(a.row_position + item.row_begin + row[half]) : -1;
      slot[half] = real ? __ldg(&records[row[half]].slot) : -2;
      if (!real) row[half] = 0xffff;
      maximum[half] = kNone, sum[half] = 0.0f;
    }
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] = 0.0f;
  }

  /* Starts the copy of an item's query vectors of this group. Kept short: code is cold, too. */
  __device__ void fetch_queries(const Item& of, int buffer) {
    const bool shared_out = Shape::kGroups > 1 && of.row_count > kRowsPerGroup;
    const int first = shared_out ? group * kRowsPerGroup : 0;
    const int left = of.row_count - first;
    const int vectors = (left < kRowsPerGroup ? left : kRowsPerGroup) * Shape::kGroup;
    const u32 to = smem_address(shared.bulk.q[group][buffer]);
    const u16* from = a.q + static_cast<u64>(of.row_begin + first) * a.q_stride +
                      of.kv_head * Shape::kGroup * kHeadDim;
#pragma unroll 1
    for (int i = warp * 32 + lane; i < vectors * kBlocks; i += 128) {
      const int vector = i / kBlocks, chunk = i % kBlocks;
      copy16(to + ((vector >> 3) * kBlocks + chunk) * 128 + (vector & 7) * 16,
             from + (vector / Shape::kGroup) * a.q_stride +
                 (vector % Shape::kGroup) * kHeadDim + chunk * 8);
    }
    copy_commit();
  }

  /* Removes the scores of one entry, two blocks from `block` on, that are not for these rows. */
  template <int kBlocksOfS>
  __device__ void mask_entry(float (&s)[kBlocksOfS][4], int block, const Entry& entry) const {
    const int lo = entry.rows & 0xffff, hi = entry.rows >> 16;
    const int begin = entry.tokens & 0xff, end = (entry.tokens >> 8) & 0xff;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int from = begin, to = end;
      if (entry.tokens & kCausal) {
        const int last = position[half] - entry.position + 1;
        to = last < to ? last : to;
        if (a.window > 0 && last - a.window > from) from = last - a.window;
      }
      if (row[half] < lo || row[half] >= hi) to = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int token = (i >> 1) * 8 + (lane & 3) * 2 + (i & 1);
        float& value = s[block + (i >> 1)][half * 2 + (i & 1)];
        if (token < from || token >= to) value = kMasked;
      }
    }
  }

  __device__ void mask(float (&s)[kScoreBlocks][4], const Entry (&entries)[kEntries]) const {
#pragma unroll
    for (int e = 0; e < kEntries; e++) mask_entry(s, e * 2, entries[e]);
  }

  /*
   * s becomes exp2 of the scaled scores; maximum and sum are brought up to date. Returns in `scale`
   * by how much o has to shrink. Touches neither o nor p, which a product may still be using.
   */
  template <int kBlocksOfS>
  __device__ void soften(float (&s)[kBlocksOfS][4], float (&scale)[2]) {
    if constexpr (Shape::kSoftcap) {
      /* softcap * tanh(x / softcap) = softcap * (1 - 2 / (exp(2 x / softcap) + 1)) */
      const float in = 2.0f * scale_log2() / a.softcap;
      const float out = a.softcap / scale_log2() * kLog2e;
#pragma unroll
      for (int b = 0; b < kBlocksOfS; b++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (s[b][i] > kMasked)
            s[b][i] = out * (1.0f - 2.0f / (exp2_fast(s[b][i] * in) + 1.0f));
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = s[0][half * 2];
#pragma unroll
      for (int b = 0; b < kBlocksOfS; b++)
        top = fmaxf(top, fmaxf(s[b][half * 2], s[b][half * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(maximum[half], top * scale_log2());
      scale[half] = exp2_fast(maximum[half] - top);
      maximum[half] = top;
      float add = 0.0f;
#pragma unroll
      for (int b = 0; b < kBlocksOfS; b++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& value = s[b][half * 2 + i];
          value = exp2_fast(value * scale_log2() - top);
          add += value;
        }
      sum[half] = sum[half] * scale[half] + add;
    }
  }

  /* Packs s as the A fragments of the second product. */
  template <int kSteps>
  __device__ static void pack(const float (&s)[kSteps * 2][4], u32 (&p)[kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; step++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* from = &s[step * 2 + (i >> 1)][(i & 1) * 2];
        p[step][i] = pack_operand(from[0], from[1]);
      }
  }

  __device__ void shrink(const float (&scale)[2]) {
    if (!__any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f)) return;
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] *= scale[i >> 1];
  }

  /* What the entries of a tile ask of this group. */
  enum Use { kSkip, kPlain, kMask, kAlone };

  __device__ Use use_of(const Entry (&entries)[kEntries]) const {
    bool any = false, plain = true, narrow = true;
#pragma unroll
    for (int e = 0; e < kEntries; e++) {
      narrow &= entries[e].tokens == 0 || (entries[e].tokens & kNarrow) != 0;
      const int lo = entries[e].rows & 0xffff, hi = entries[e].rows >> 16;
      any |= lo < row_first + row_count && hi > row_first;
      plain &= lo <= row_first && hi >= row_first + row_count && entries[e].tokens == 0x1000;
    }
    return !any ? kSkip : plain ? kPlain : narrow ? kAlone : kMask;
  }

  __device__ bool is_mine(int t) const {
    return Shape::kGroups == 1 || shares_rows() || t % Shape::kGroups == group;
  }

  __device__ u32 full_bar() const { return smem_address(&shared.full[tile % Shape::kStages]); }
  __device__ u32 parity() const { return (tile / Shape::kStages) & 1; }
  __device__ u32 kv_address(u32 number) const {
    return smem_address(shared.bulk.kv[number % Shape::kStages]);
  }

  __device__ void read_entries(Entry (&entries)[kEntries]) const {
#pragma unroll
    for (int e = 0; e < kEntries; e++) entries[e] = shared.entries[tile % Shape::kStages][e];
  }

  __device__ void release(u32 number) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(smem_address(&shared.empty[number % Shape::kStages]));
  }

  /* Goes on to the next tile that the group computes on together; false at the item's end. */
  __device__ bool advance(int& t, int tiles, Entry (&entries)[kEntries], Use& use) {
    for (; t < tiles; t++, tile++) {
      barrier_wait(full_bar(), parity(), a.abort_flag, Shape::kAbortFull);
      if (is_mine(t)) {
        read_entries(entries);
        use = use_of(entries);
        if (use == kAlone) consume_narrow();
        if (use == kPlain || use == kMask) return true;
      }
      release(tile);
    }
    return false;
  }

  /*
   * True if the very next tile has arrived and the group computes on it together: then its entries
   * are read. Does not wait; all warps of the group get the same answer.
   */
  __device__ bool next_is_here(int t, int tiles, Entry (&entries)[kEntries], Use& use) {
    const bool here = t < tiles && barrier_test(full_bar(), parity());
    if (!block_all(1 + group, 128, here)) return false;
    read_entries(entries);
    use = use_of(entries);
    return use == kPlain || use == kMask;
  }

#if FF_HOPPER && !FF_PORTABLE
  using Product = WgmmaProduct<kHeadDim, Shape::kTile>;

  u32 query[Product::kQuerySteps][4]; /* the item's query vectors, if they are held */

  __device__ void hold_queries(u32 q) {
    if constexpr (Product::kHoldsQueries) {
#pragma unroll
      for (int step = 0; step < Product::kQuerySteps; step++)
        MmaProduct<kHeadDim, Shape::kTile>::queries(query[step], q, step, warp, lane);
    }
  }

  /*
   * The current tile's entries are for the rows of one warp or two each: this warp takes those
   * that are for it, by mma.sync, while others take theirs.
   */
  __device__ void consume_narrow() {
    if constexpr (Product::kHoldsQueries) {
      using Narrow = MmaProduct<kHeadDim, Shape::kTile>;
      const int first = row_first + warp * 16 / Shape::kGroup;
      const int end = row_first + (warp * 16 + 15) / Shape::kGroup + 1;
#pragma unroll 1
      for (int e = 0; e < kEntries; e++) {
        const Entry entry = shared.entries[tile % Shape::kStages][e];
        if (static_cast<int>(entry.rows & 0xffff) >= end) continue;
        if (static_cast<int>(entry.rows >> 16) <= first) continue;
        const u32 kv = kv_address(tile) + e * 2 * Narrow::kGroupBytes;
        float s[2][4], scale[2];
        u32 p[1][4];
        Narrow::narrow_scores(s, query, kv, lane);
        mask_entry(s, 0, entry);
        soften(s, scale);
        shrink(scale);
        pack(s, p);
        Narrow::narrow_values(o, p, kv, lane);
      }
    }
  }

  /* Issues the scores of the current tile. */
  __device__ void issue_scores(float (&s)[kScoreBlocks][4], u32 q) const {
    if constexpr (Product::kHoldsQueries)
      Product::scores(s, query, kv_address(tile));
    else
      Product::scores(s, q, kv_address(tile));
  }

  /*
   * While the tensor cores do P V of one tile, the scores of the next are softened, provided that
   * it has arrived: its Q K^T is issued first. Only where both groups have rows of their own:
   * otherwise reading KV takes longer than computing, and holding two tiles would slow it down.
   */
  __device__ void consume_tiles(u32 q) {
    const int tiles = (item.entry_count + kEntries - 1) / kEntries;
    const bool shares = shares_rows();
    Entry entries[kEntries];
    Use use = kSkip;
    float s[kScoreBlocks][4], scale[2];
    u32 p[Shape::kTile / 16][4];
    int t = 0;
    while (advance(t, tiles, entries, use)) {
      const bool together = shares && t == 0 && tiles > Shape::kStages && spans_groups(entries[0]);
      if (together && group == 1) stagger();
      issue_scores(s, q);
      wgmma_wait<0>();
      if (together && group == 0) stagger();
      if (use == kMask) mask(s, entries);
      soften(s, scale);
      shrink(scale);
      pack(s, p);
      u32 held = tile;
      t++, tile++;
      bool more = shares && next_is_here(t, tiles, entries, use);
      while (more) {
        issue_scores(s, q);
        Product::values(o, p, kv_address(held));
        wgmma_wait<1>();
        if (use == kMask) mask(s, entries);
        soften(s, scale);
        const u32 done = held;
        held = tile;
        t++, tile++;
        more = next_is_here(t, tiles, entries, use);
        wgmma_wait<0>();
        release(done);
        shrink(scale);
        pack(s, p);
      }
      Product::values(o, p, kv_address(held));
      wgmma_wait<0>();
      release(held);
    }
    finish_sums();
  }

  __device__ static bool spans_groups(const Entry& entry) {
    return (entry.rows & 0xffff) < kRowsPerGroup && (entry.rows >> 16) > kRowsPerGroup;
  }

  /* Group 1 starts when group 0 has its first scores: one softens while the other multiplies. It
   * must be here before group 0 comes again: both take the first tile, and the ring holds less. */
  __device__ void stagger() const {
    if (group == 0)
      block_arrive(kBarrierStagger, 256);
    else
      block_sync(kBarrierStagger, 256);
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
    const bool padding = warp * 16 >= row_count * Shape::kGroup;
    Entry entries[kEntries];
    Use use = kSkip;
    for (int t = 0; advance(t, tiles, entries, use);) {
      if (!padding) {
        float s[kScoreBlocks][4], scale[2];
        u32 p[Shape::kTile / 16][4];
        Product::scores(s, q, kv_address(tile), warp, lane);
        if (use == kMask) mask(s, entries);
        soften(s, scale);
        pack(s, p);
        shrink(scale);
        Product::values(o, p, kv_address(tile), lane);
      }
      release(tile), t++, tile++;
    }
    finish_sums();
  }
#endif

  __device__ void finish_sums() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
};
