/* The lane kernel of BLAKE3, a template: LANES jobs run side by side, lane i of every vector is job i.
 *
 * The including file defines
 *     LANES_NAME    the function to define
 *     LANES         its width
 *     LANES_TARGET  function attribute that allows the instructions, or nothing
 *     VECTOR        a vector of LANES u32 on which + ^ & | == < work lane by lane (gcc and clang have that)
 *     VECTOR_ROTR   (VECTOR, constant) -> VECTOR, each lane rotated right
 *     load_blocks   (const uint8_t *const from[LANES], VECTOR m[16]): m[w] lane i = word w of from[i]
 *     store_values  (const VECTOR cv[8], uint8_t *const out[LANES]): the inverse for 8 words; NULL = skip
 */
#include <stdint.h>
#include <string.h>

#include "blake3_job.h"

#define LANES_INLINE static inline __attribute__((always_inline)) LANES_TARGET

#define SPLAT(word) ((VECTOR){0} + (uint32_t)(word))

/* (a + x) + b: the message word is added first because b is the operand that arrives last. */
#define QUARTER(a, b, c, d, x, y) \
    do {                          \
        a = (a + (x)) + b;        \
        d = VECTOR_ROTR(d ^ a, 16); \
        c = c + d;                \
        b = VECTOR_ROTR(b ^ c, 12); \
        a = (a + (y)) + b;        \
        d = VECTOR_ROTR(d ^ a, 8);  \
        c = c + d;                \
        b = VECTOR_ROTR(b ^ c, 7);  \
    } while (0)

#define ROUND(i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15) \
    do {                                                                            \
        QUARTER(v0, v4, v8, v12, m[i0], m[i1]);                                     \
        QUARTER(v1, v5, v9, v13, m[i2], m[i3]);                                     \
        QUARTER(v2, v6, v10, v14, m[i4], m[i5]);                                    \
        QUARTER(v3, v7, v11, v15, m[i6], m[i7]);                                    \
        QUARTER(v0, v5, v10, v15, m[i8], m[i9]);                                    \
        QUARTER(v1, v6, v11, v12, m[i10], m[i11]);                                  \
        QUARTER(v2, v7, v8, v13, m[i12], m[i13]);                                   \
        QUARTER(v3, v4, v9, v14, m[i14], m[i15]);                                   \
    } while (0)

/* One compression in every lane; cv is input and output. */
LANES_INLINE void compress(VECTOR cv[8], const VECTOR m[16], VECTOR low, VECTOR high, VECTOR size,
                           VECTOR flags) {
    VECTOR v0 = cv[0], v1 = cv[1], v2 = cv[2], v3 = cv[3];
    VECTOR v4 = cv[4], v5 = cv[5], v6 = cv[6], v7 = cv[7];
    VECTOR v8 = SPLAT(0x6A09E667), v9 = SPLAT(0xBB67AE85);
    VECTOR v10 = SPLAT(0x3C6EF372), v11 = SPLAT(0xA54FF53A);
    VECTOR v12 = low, v13 = high, v14 = size, v15 = flags;
    /* Each line is the one before under the permutation 2 6 3 10 7 0 4 13 1 11 12 5 9 14 15 8. */
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
    cv[0] = v0 ^ v8;
    cv[1] = v1 ^ v9;
    cv[2] = v2 ^ v10;
    cv[3] = v3 ^ v11;
    cv[4] = v4 ^ v12;
    cv[5] = v5 ^ v13;
    cv[6] = v6 ^ v14;
    cv[7] = v7 ^ v15;
}

/* Lanes end at different blocks. A lane past its end goes on over its tail, its result set aside. */
LANES_TARGET void LANES_NAME(const blake3_job *const *jobs, int count) {
    /* The last block of a lane when it is not a whole one: zero padded, as BLAKE3 wants it. */
    uint8_t tails[LANES][BLAKE3_BLOCK] __attribute__((aligned(64)));
    const uint8_t *from[LANES];
    uint8_t *out[LANES];
    uint32_t whole[LANES]; /* blocks that can be read from the data itself */
    uint32_t low[LANES], high[LANES], blocks[LANES], last_size[LANES], first_flags[LANES],
        last_flags[LANES];
    uint32_t steady = BLAKE3_LEAF_BLOCKS; /* up to this block every lane reads its own data */
    uint32_t shortest = BLAKE3_LEAF_BLOCKS;
    for (int i = 0; i < LANES; i++) {
        const blake3_job *job = jobs[i < count ? i : 0];
        int is_ragged = job->last_size != BLAKE3_BLOCK;
        from[i] = job->data;
        out[i] = i < count ? job->out : NULL;
        low[i] = (uint32_t)job->counter;
        high[i] = (uint32_t)(job->counter >> 32);
        blocks[i] = job->blocks;
        last_size[i] = job->last_size;
        first_flags[i] = job->first_flags;
        last_flags[i] = job->last_flags;
        whole[i] = job->blocks - (is_ragged ? 1u : 0u);
        steady = whole[i] < steady ? whole[i] : steady;
        shortest = blocks[i] < shortest ? blocks[i] : shortest;
        if (is_ragged || job->blocks < jobs[0]->blocks) {
            memset(tails[i], 0, BLAKE3_BLOCK);
        }
        if (is_ragged && job->last_size) {
            memcpy(tails[i], job->data + BLAKE3_BLOCK * whole[i], job->last_size);
        }
    }
    VECTOR v_low, v_high, v_blocks, v_last_size, v_last_flags, v_first_flags;
    memcpy(&v_low, low, sizeof v_low);
    memcpy(&v_high, high, sizeof v_high);
    memcpy(&v_blocks, blocks, sizeof v_blocks);
    memcpy(&v_last_size, last_size, sizeof v_last_size);
    memcpy(&v_last_flags, last_flags, sizeof v_last_flags);
    memcpy(&v_first_flags, first_flags, sizeof v_first_flags);
    VECTOR cv[8] = {SPLAT(0x6A09E667), SPLAT(0xBB67AE85), SPLAT(0x3C6EF372), SPLAT(0xA54FF53A),
                    SPLAT(0x510E527F), SPLAT(0x9B05688C), SPLAT(0x1F83D9AB), SPLAT(0x5BE0CD19)};
    VECTOR done[8] = {{0}};
    VECTOR m[16];
    uint32_t most = jobs[0]->blocks;
    for (uint32_t block = 0; block < most; block++) {
        if (block >= steady) {
            for (int i = 0; i < LANES; i++) {
                from[i] = block < whole[i] ? from[i] : tails[i];
            }
        }
        /* What the next call will want if its jobs follow these: so many streams defeat the prefetcher.
         * Measured on Zen 4: 4.3 GB/s without, 5.0 with. As a number: it may lie past the data. */
        for (int i = 0; i < LANES; i++) {
            __builtin_prefetch((const void *)((uintptr_t)from[i] + LANES * BLAKE3_LEAF));
        }
        load_blocks(from, m);
        VECTOR is_last = (VECTOR)(v_blocks == SPLAT(block + 1));
        VECTOR size = (v_last_size & is_last) | (SPLAT(BLAKE3_BLOCK) & ~is_last);
        VECTOR flags = v_last_flags & is_last;
        if (block == 0) {
            flags |= v_first_flags;
        }
        compress(cv, m, v_low, v_high, size, flags);
        if (block + 1 >= shortest) {
            for (int w = 0; w < 8; w++) {
                done[w] = (cv[w] & is_last) | (done[w] & ~is_last);
            }
        }
        for (int i = 0; i < LANES; i++) {
            from[i] += BLAKE3_BLOCK;
        }
    }
    store_values(done, out);
}

#undef LANES_INLINE
#undef SPLAT
#undef QUARTER
#undef ROUND
