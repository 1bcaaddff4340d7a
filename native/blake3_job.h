/* Between blake3.c and its lane kernels: one job per lane. */
#ifndef LAYERSTORE_BLAKE3_JOB_H
#define LAYERSTORE_BLAKE3_JOB_H

#include <stdint.h>

#include "simd.h"

enum {
    BLAKE3_BLOCK = 64,
    BLAKE3_LEAF = 1024,
    BLAKE3_LEAF_BLOCKS = BLAKE3_LEAF / BLAKE3_BLOCK,
};

enum {
    BLAKE3_CHUNK_START = 1,
    BLAKE3_CHUNK_END = 2,
    BLAKE3_PARENT = 4,
    BLAKE3_ROOT = 8,
};

typedef struct {
    const uint8_t *data;
    uint8_t *out; /* 32 bytes; written after all lanes of the call have read their data */
    uint64_t counter;
    uint8_t blocks;      /* 1..16 */
    uint8_t last_size;   /* bytes in the last block, 0..64 */
    uint8_t first_flags; /* of the first block */
    uint8_t last_flags;  /* of the last block; a single block has both */
} blake3_job;

/* Run `count` jobs, 1 <= count <= the lanes in the name; jobs[0] has the most blocks. */
void blake3_lanes4(const blake3_job *const *jobs, int count);
#if SIMD_X86
void blake3_lanes8(const blake3_job *const *jobs, int count);
void blake3_lanes16(const blake3_job *const *jobs, int count);
#endif

#endif
