#include "blake3.h"

#include <stdlib.h>
#include <string.h>

#include "blake3_job.h"

enum {
    /* Leaves in a batch: 512 KiB of data stay in a 1 MiB L2 cache between cutting and hashing. */
    BATCH_LEAVES = 512,
    /* 2**64 bytes are 2**45 pieces: one pending value per bit of the number of pieces. */
    STACK_DEPTH = 64,
};

typedef struct {
    uint8_t *out;
    uint32_t first; /* index of its first chaining value in the batch */
    uint32_t count; /* chaining values left; parents halve it */
    uint32_t root_flag;
} tree;

struct blake3_batch {
    size_t leaves;
    size_t trees;
    blake3_job jobs[BATCH_LEAVES];
    const blake3_job *order[BATCH_LEAVES];
    tree todo[BATCH_LEAVES];
    uint8_t values[BATCH_LEAVES * BLAKE3_SIZE];
};

static void add_long(blake3_batch *batch, const uint8_t *data, size_t size, uint8_t *out);
static void add_tree(blake3_batch *batch, const uint8_t *data, size_t size, uint64_t first_leaf,
                     uint32_t root_flag, uint8_t *out);
static void join(const uint8_t values[64], uint32_t root_flag, uint8_t *out);
static void run_parents(blake3_batch *batch);
static void run_leaves(blake3_batch *batch);
static void run(const blake3_job *const *jobs, size_t count);

blake3_batch *blake3_batch_new(void) {
    blake3_batch *batch = malloc(sizeof *batch);
    if (batch) {
        batch->leaves = 0;
        batch->trees = 0;
    }
    return batch;
}

void blake3_batch_free(blake3_batch *batch) {
    free(batch);
}

void blake3_batch_add(blake3_batch *batch, const uint8_t *data, size_t size, uint8_t *out) {
    if (size > (size_t)BATCH_LEAVES * BLAKE3_LEAF) {
        add_long(batch, data, size, out);
    } else {
        add_tree(batch, data, size, 0, BLAKE3_ROOT, out);
    }
}

void blake3_batch_flush(blake3_batch *batch) {
    run_leaves(batch);
    run_parents(batch);
    batch->leaves = 0;
    batch->trees = 0;
}

/* An input that does not fit a batch: whole subtrees of a batch's size, joined as their number grows.
 * As in binary counting, bit k of the number of finished subtrees says that a value of 2**k of them is
 * pending. Every subtree here has data after it, so no value joined in the loop can be the root. */
static void add_long(blake3_batch *batch, const uint8_t *data, size_t size, uint8_t *out) {
    const size_t piece = (size_t)BATCH_LEAVES * BLAKE3_LEAF;
    uint8_t stack[(STACK_DEPTH + 1) * BLAKE3_SIZE];
    size_t depth = 0;
    uint64_t pieces = 0;
    blake3_batch_flush(batch);
    for (; size > piece; data += piece, size -= piece) {
        add_tree(batch, data, piece, pieces * BATCH_LEAVES, 0, stack + depth * BLAKE3_SIZE);
        blake3_batch_flush(batch);
        depth++;
        pieces++;
        for (uint64_t carry = pieces; carry % 2 == 0; carry /= 2) {
            depth--;
            uint8_t *pair = stack + (depth - 1) * BLAKE3_SIZE;
            join(pair, 0, pair);
        }
    }
    add_tree(batch, data, size, pieces * BATCH_LEAVES, 0, stack + depth * BLAKE3_SIZE);
    blake3_batch_flush(batch);
    for (; depth > 1; depth--) {
        uint8_t *pair = stack + (depth - 1) * BLAKE3_SIZE;
        join(pair, 0, pair);
    }
    join(stack, BLAKE3_ROOT, out);
}

static void add_tree(blake3_batch *batch, const uint8_t *data, size_t size, uint64_t first_leaf,
                     uint32_t root_flag, uint8_t *out) {
    size_t leaves = size ? (size - 1) / BLAKE3_LEAF + 1 : 1;
    if (batch->leaves + leaves > BATCH_LEAVES) {
        blake3_batch_flush(batch);
    }
    uint32_t first = (uint32_t)batch->leaves;
    uint8_t end_flags = BLAKE3_CHUNK_END;
    if (leaves == 1) {
        end_flags |= (uint8_t)root_flag;
    } else {
        batch->todo[batch->trees++] = (tree){out, first, (uint32_t)leaves, root_flag};
    }
    for (size_t i = 0; i < leaves; i++) {
        size_t left = size - i * BLAKE3_LEAF;
        uint32_t length = left < BLAKE3_LEAF ? (uint32_t)left : BLAKE3_LEAF;
        uint32_t blocks = length ? (length - 1) / BLAKE3_BLOCK + 1 : 1;
        batch->jobs[first + i] = (blake3_job){
            .data = data + i * BLAKE3_LEAF,
            .out = leaves == 1 ? out : batch->values + (first + i) * BLAKE3_SIZE,
            .counter = first_leaf + i,
            .blocks = (uint8_t)blocks,
            .last_size = (uint8_t)(length - (blocks - 1) * BLAKE3_BLOCK),
            .first_flags = BLAKE3_CHUNK_START,
            .last_flags = end_flags,
        };
    }
    batch->leaves += leaves;
}

static void join(const uint8_t values[64], uint32_t root_flag, uint8_t *out) {
    blake3_job job = {values, out, 0, 1, BLAKE3_BLOCK, BLAKE3_PARENT, (uint8_t)root_flag};
    const blake3_job *jobs[1] = {&job};
    run(jobs, 1);
}

/* One level of all trees a time: pairs become their parent, a last odd value moves up as it is, which
 * is BLAKE3's left-heavy tree. Parents land in front of the pairs that are still to be read. */
static void run_parents(blake3_batch *batch) {
    while (batch->trees) {
        size_t jobs = 0;
        for (size_t t = 0; t < batch->trees; t++) {
            tree *each = &batch->todo[t];
            uint8_t *values = batch->values + (size_t)each->first * BLAKE3_SIZE;
            int is_top = each->count == 2;
            for (uint32_t i = 0; i < each->count / 2; i++, jobs++) {
                batch->jobs[jobs] = (blake3_job){
                    .data = values + (size_t)i * 2 * BLAKE3_SIZE,
                    .out = is_top ? each->out : values + (size_t)i * BLAKE3_SIZE,
                    .blocks = 1,
                    .last_size = BLAKE3_BLOCK,
                    .first_flags = BLAKE3_PARENT,
                    .last_flags = is_top ? (uint8_t)each->root_flag : 0,
                };
                batch->order[jobs] = &batch->jobs[jobs];
            }
        }
        run(batch->order, jobs);
        size_t kept = 0;
        for (size_t t = 0; t < batch->trees; t++) {
            tree each = batch->todo[t];
            uint8_t *values = batch->values + (size_t)each.first * BLAKE3_SIZE;
            if (each.count % 2) {
                memmove(values + (size_t)(each.count / 2) * BLAKE3_SIZE,
                        values + (size_t)(each.count - 1) * BLAKE3_SIZE, BLAKE3_SIZE);
            }
            each.count = each.count / 2 + each.count % 2;
            if (each.count > 1) {
                batch->todo[kept++] = each;
            }
        }
        batch->trees = kept;
    }
}

/* Longest first, so that the lanes of one call end at about the same block. */
static void run_leaves(blake3_batch *batch) {
    size_t starts[BLAKE3_LEAF_BLOCKS + 2] = {0};
    for (size_t i = 0; i < batch->leaves; i++) {
        starts[BLAKE3_LEAF_BLOCKS - batch->jobs[i].blocks + 1]++;
    }
    for (int rank = 0; rank <= BLAKE3_LEAF_BLOCKS; rank++) {
        starts[rank + 1] += starts[rank];
    }
    for (size_t i = 0; i < batch->leaves; i++) {
        batch->order[starts[BLAKE3_LEAF_BLOCKS - batch->jobs[i].blocks]++] = &batch->jobs[i];
    }
    run(batch->order, batch->leaves);
}

/* The widest kernel that the jobs fill more than half: a half empty one costs as much as a full one. */
static void run(const blake3_job *const *jobs, size_t count) {
#if SIMD_X86
    enum simd_level level = simd_level();
    if (level >= SIMD_AVX512) {
        while (count > 8) {
            int lanes = count < 16 ? (int)count : 16;
            blake3_lanes16(jobs, lanes);
            jobs += lanes;
            count -= (size_t)lanes;
        }
    }
    if (level >= SIMD_AVX2) {
        while (count > 2) {
            int lanes = count < 8 ? (int)count : 8;
            blake3_lanes8(jobs, lanes);
            jobs += lanes;
            count -= (size_t)lanes;
        }
    }
#endif
    while (count) {
        int lanes = count < 4 ? (int)count : 4;
        blake3_lanes4(jobs, lanes);
        jobs += lanes;
        count -= (size_t)lanes;
    }
}
