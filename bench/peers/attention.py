"""Times released attention kernels on workload files, the way `flashforge bench attention` does.

Peers: fa2 and fa3 (the libraries of the vLLM wheel's vllm_flash_attn folder, called as vLLM calls
them), decode and cascade (FlashInfer's BatchDecodeWithPagedKVCacheWrapper on tensor cores and
MultiLevelCascadeAttentionWrapper, one level a tree level). fp16, pages of 16 tokens, node lengths
rounded up to whole pages (their block tables cannot share half a page). One call in a CUDA graph,
the L2 cache flushed by reads before each replay, median of the replays in us; plan() on the host
is timed apart. Errors are against float64 on sampled rows.

    python attention.py --workloads codec.json --peers fa3,decode,cascade --libraries FOLDER
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

PAGE = 16
FLUSH_BYTES = 256 << 20
REPLAYS, REPLAYS_MIN, TOTAL_US = 31, 7, 60_000


class Tree:
    """A workload with rows in depth-first order and page ids for every node."""

    def __init__(self, workload):
        self.q_heads = workload["q_heads"]
        self.kv_heads = workload["kv_heads"]
        self.head_dim = workload["head_dim"]
        nodes = workload["nodes"]
        self.parent = [n["parent"] for n in nodes]
        self.pages, next_page = [], 0
        for node in nodes:
            count = -(-node["tokens"] // PAGE)
            self.pages.append(range(next_page, next_page + count))
            next_page += count
        self.page_count = next_page
        paths = [self.path(node) for node in workload["requests"]]
        self.paths = sorted(paths)  # indices rise along a path: requests of a node stand together
        self.lengths = [sum(len(self.pages[n]) for n in path) * PAGE for path in self.paths]

    def path(self, node):
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def row_pages(self, row):
        return [page for node in self.paths[row] for page in self.pages[node]]


class Tensors:
    def __init__(self, tree):
        shape = (tree.page_count, 2, PAGE, tree.kv_heads, tree.head_dim)
        self.kv = torch.empty(shape, dtype=torch.float16, device="cuda").normal_()
        rows = len(tree.paths)
        self.q = torch.randn(rows, tree.q_heads, tree.head_dim, dtype=torch.float16, device="cuda")


def ints(values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def flash_attention(version):
    def prepare(tree, tensors):
        k, v = tensors.kv[:, 0], tensors.kv[:, 1]
        rows = len(tree.paths)
        most = max(tree.lengths)
        table = torch.zeros(rows, most // PAGE, dtype=torch.int32)
        for row in range(rows):
            pages = tree.row_pages(row)
            table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        table, used = table.cuda(), ints(tree.lengths)
        starts, zeros = ints(range(rows + 1)), ints([0] * (rows + 1))
        out, scale = torch.empty_like(tensors.q), tree.head_dim**-0.5
        q = tensors.q
        # The vLLM wheel gives K and V as slices of one tensor; strides are passed on.
        if version == 2:
            call = torch.ops._vllm_fa2_C.varlen_fwd

            def run():
                call(q, k, v, out, starts, zeros, used, None, table, None, 1, most, 0.0, scale,
                     False, True, -1, -1, 0.0, False, 0, None)  # fmt: skip
        else:
            call = torch.ops._vllm_fa3_C.fwd
            none = [None]

            def run():
                call(q, k, v, *none * 3, out, starts, *none * 3, used, 1, most, table,
                     *none * 8, scale, True, -1, -1, 0.0, True, None, 0, None, 0, None,
                     1, 0, None)  # fmt: skip

        return run, out, 0.0

    return prepare


def flashinfer_decode(tree, tensors):
    import flashinfer

    rows = [tree.row_pages(row) for row in range(len(tree.paths))]
    indptr = [0]
    for pages in rows:
        indptr.append(indptr[-1] + len(pages))
    workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=True
    )
    arrays = ints(indptr), ints([p for pages in rows for p in pages]), ints([PAGE] * len(rows))

    def plan():
        wrapper.plan(*arrays, tree.q_heads, tree.kv_heads, tree.head_dim, PAGE,
                     q_data_type=torch.float16, kv_data_type=torch.float16)  # fmt: skip

    out = torch.empty_like(tensors.q)
    plan_us = host_us(plan)
    return lambda: wrapper.run(tensors.q, tensors.kv, out=out), out, plan_us


def flashinfer_cascade(tree, tensors):
    import flashinfer

    depth = max(len(path) for path in tree.paths)
    levels = [level_arrays(tree, level) for level in range(depth)]
    workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(depth, workspace, "NHD")

    def plan():
        wrapper.plan(*[list(part) for part in zip(*levels)], tree.q_heads, tree.kv_heads,
                     tree.head_dim, PAGE, q_data_type=torch.float16)  # fmt: skip

    plan_us = host_us(plan)
    out = torch.empty_like(tensors.q)

    def run():
        out.copy_(wrapper.run(tensors.q, tensors.kv))

    # The copy is not the peer's work: it is left out of the timed graph.
    run.timed = lambda: wrapper.run(tensors.q, tensors.kv)
    return run, out, plan_us


def level_arrays(tree, level):
    """Row, page and last-page arrays of one tree level; rows that end above it get no pages."""
    row_ptr, page_ptr, pages, last, previous = [0], [0], [], [], None
    for row, path in enumerate(tree.paths):
        node = path[level] if level < len(path) else None
        if row > 0 and node is not None and node == previous:
            row_ptr[-1] = row + 1
        else:
            pages.extend(tree.pages[node] if node is not None else [])
            row_ptr.append(row + 1)
            page_ptr.append(len(pages))
            last.append(PAGE if node is not None and len(tree.pages[node]) else 0)
        previous = node
    return ints(row_ptr), ints(page_ptr), ints(pages), ints(last)


PEERS = {
    "fa2": flash_attention(2),
    "fa3": flash_attention(3),
    "decode": flashinfer_decode,
    "cascade": flashinfer_cascade,
}


def host_us(work):
    work()
    torch.cuda.synchronize()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def cold_us(work, flush):
    """Median time of one call in a graph, L2 flushed by reads before each replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for replay in range(-2, REPLAYS):
        flush.sum()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 0:
            times.append(begin.elapsed_time(end) * 1000)
        if len(times) >= REPLAYS_MIN and sum(times) > TOTAL_US:
            break
    return statistics.median(times)


def errors(tree, tensors, out, samples=3):
    """Largest absolute error over sampled rows, against float64."""
    rows = sorted({i * (len(tree.paths) - 1) // max(1, samples - 1) for i in range(samples)})
    worst = 0.0
    group = tree.q_heads // tree.kv_heads
    for row in rows:
        kv = tensors.kv[torch.tensor(tree.row_pages(row), device="cuda")].double()
        k = kv[:, 0].reshape(-1, tree.kv_heads, tree.head_dim)
        v = kv[:, 1].reshape(-1, tree.kv_heads, tree.head_dim)
        q = tensors.q[row].double().reshape(tree.kv_heads, group, tree.head_dim)
        score = torch.einsum("hgd,thd->hgt", q, k) * tree.head_dim**-0.5
        exact = torch.einsum("hgt,thd->hgd", score.softmax(-1), v).reshape(out[row].shape)
        worst = max(worst, (out[row].double() - exact).abs().max().item())
    return worst


def measure(peer, tree, tensors, flush):
    run, out, plan_us = PEERS[peer](tree, tensors)
    out.fill_(float("nan"))
    run()
    torch.cuda.synchronize()
    error = errors(tree, tensors, out)
    return {"us": cold_us(getattr(run, "timed", run), flush), "plan_us": plan_us, "error": error}


def load_libraries(folder, peers):
    for peer in peers:
        if peer in ("fa2", "fa3"):
            torch.ops.load_library(str(Path(folder) / f"_vllm_{peer}_C.abi3.so"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", required=True)
    parser.add_argument("--peers", default="fa2,fa3,decode,cascade")
    parser.add_argument("--libraries", help="folder of the vLLM wheel's _vllm_fa*_C libraries")
    parser.add_argument("--out", help="file that gets one JSON line a workload and peer")
    options = parser.parse_args()
    peers = options.peers.split(",")
    load_libraries(options.libraries or ".", peers)
    flush = torch.ones(FLUSH_BYTES // 4, device="cuda")
    out = open(options.out, "a") if options.out else sys.stdout
    for workload in json.loads(Path(options.workloads).read_text()):
        tree = Tree(workload)
        tensors = Tensors(tree)
        for peer in peers:
            row = {"name": workload["name"], "peer": peer}
            try:
                row |= measure(peer, tree, tensors, flush)
            except Exception as error:  # a peer that cannot run a shape must not end the run
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            print(json.dumps(row), file=out, flush=True)
        del tensors


if __name__ == "__main__":
    main()
