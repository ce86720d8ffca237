// cooperative_groups.h - the part about whole grids and blocks.
#ifndef CUDAHOST_COOPERATIVE_GROUPS_H
#define CUDAHOST_COOPERATIVE_GROUPS_H
#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
    void sync() const { cudahost::grid_barrier(); }
    bool is_valid() const { return cudahost::self.current->block->grid->cooperative; }
    unsigned long long size() const { return num_blocks() * cudahost::self.current->block->count; }
    unsigned long long num_blocks() const { return cudahost::self.current->block->grid->count; }
    unsigned long long thread_rank() const {
        return block_rank() * cudahost::self.current->block->count + cudahost::self.current->rank;
    }
    unsigned long long block_rank() const {
        return blockIdx.x + gridDim.x * (blockIdx.y + (unsigned long long)gridDim.y * blockIdx.z);
    }
};

struct thread_block {
    void sync() const { __syncthreads(); }
    unsigned size() const { return cudahost::self.current->block->count; }
    unsigned thread_rank() const { return cudahost::self.current->rank; }
};

inline grid_group this_grid() { return grid_group(); }
inline thread_block this_thread_block() { return thread_block(); }

} // namespace cooperative_groups
#endif
