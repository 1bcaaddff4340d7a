/* Four lanes on plain gcc/clang vectors: SSE2 on x86-64, NEON on aarch64, scalar code elsewhere. */
#include <stddef.h>

#include "blake3_job.h"
#include "bytes.h"

typedef uint32_t vector4 __attribute__((vector_size(16)));

#define LANES_NAME blake3_lanes4
#define LANES 4
#define LANES_TARGET
#define VECTOR vector4
#define VECTOR_ROTR(x, n) (((x) >> (n)) | ((x) << (32 - (n))))

static inline void load_blocks(const uint8_t *const from[4], vector4 m[16]) {
    for (int w = 0; w < 16; w++) {
        m[w] = (vector4){load_le32(from[0] + 4 * w), load_le32(from[1] + 4 * w),
                         load_le32(from[2] + 4 * w), load_le32(from[3] + 4 * w)};
    }
}

static inline void store_values(const vector4 cv[8], uint8_t *const out[4]) {
    for (int i = 0; i < 4; i++) {
        for (int w = 0; out[i] && w < 8; w++) {
            store_le32(out[i] + 4 * w, cv[w][i]);
        }
    }
}

#include "blake3_lanes.h"
