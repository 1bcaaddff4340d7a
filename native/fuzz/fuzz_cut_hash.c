/* Random rules, spans and bytes: the chunks of every instruction set are those of a loop over one byte at
 * a time, and the same bytes hash the same at each.
 *
 *     input   12 bytes: rule, is_open, number of spans | 4 bytes per span | data
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../blake3.h"
#include "../bytes.h"
#include "../chunker.h"
#include "../gear.h"
#include "../simd.h"

enum { HEAD = 12, MAX_SPANS = 8 };

static void demand(int truth, const char *what) {
    if (!truth) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static unsigned u16(const uint8_t *from) {
    return from[0] | (unsigned)from[1] << 8;
}

/* The rule as it is written in layerstore/kernels.py. */
static size_t plain_next(const uint8_t *data, size_t size, const cdc_rule *rule, int is_open) {
    if (size <= rule->min) {
        return is_open ? 0 : size;
    }
    for (size_t at = rule->min;; at++) {
        uint32_t hash = 0;
        for (size_t back = CDC_WINDOW; back > 0; back--) {
            hash = (hash << 1) + GEAR[data[at - back]];
        }
        if (at == rule->max || hash < (at < rule->normal ? rule->strict : rule->loose)) {
            return at;
        }
        if (at == size) {
            return is_open ? 0 : at;
        }
    }
}

static void check_chunks(const uint8_t *data, const chunker_span *spans, size_t count,
                         const cdc_rule *rule, int is_open, const uint8_t *counts,
                         const chunker_chunks *chunks) {
    size_t chunk = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = data + spans[i].offset;
        size_t left = (size_t)spans[i].size;
        for (uint32_t k = 0; k < load_le32(counts + 4 * i); k++, chunk++) {
            size_t want = plain_next(at, left, rule, is_open && i + 1 == count);
            demand(chunk < chunks->count, "more counted than there are");
            demand(load_le32(chunks->lengths + 4 * chunk) == want, "another length");
            int is_hole = 1;
            for (size_t b = 0; b < want; b++) {
                is_hole &= at[b] == 0;
            }
            static const uint8_t zeros[BLAKE3_SIZE];
            demand(is_hole == (memcmp(chunks->ids + 32 * chunk, zeros, 32) == 0), "wrong hole");
            at += want;
            left -= want;
        }
        demand(plain_next(at, left, rule, is_open && i + 1 == count) == 0, "a chunk is missing");
    }
    demand(chunk == chunks->count, "fewer counted than there are");
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size < HEAD) {
        return 0;
    }
    size_t min = 64 + u16(input) % 512, normal = min + u16(input + 2) % 1024;
    unsigned loose_bits = 1 + input[6] % 12, strict_bits = loose_bits + input[7] % 8;
    cdc_rule rule = {min, normal, normal + u16(input + 4) % 40000, (uint32_t)1 << (32 - strict_bits),
                     (uint32_t)1 << (32 - loose_bits)};
    int is_open = input[8] & 1;
    size_t count = input[9] % (MAX_SPANS + 1);
    /* The bytes are repeated, so that a short input reaches the block-sized paths. */
    size_t repeats = 1 + input[10] % 64;
    if (size < HEAD + 4 * count) {
        return 0;
    }
    size_t unit = size - HEAD - 4 * count, length = unit * repeats;
    uint8_t *data = malloc(length + 1); /* exact but for one: ASan sees any byte read beyond */
    for (size_t i = 0; i < repeats; i++) {
        memcpy(data + i * unit, input + HEAD + 4 * count, unit);
    }
    chunker_span spans[MAX_SPANS + 1];
    for (size_t i = 0; i < count; i++) {
        const uint8_t *from = input + HEAD + 4 * i;
        spans[i].offset = length ? u16(from) * (uint64_t)repeats % (length + 1) : 0;
        uint64_t room = length - spans[i].offset;
        spans[i].size = u16(from + 2) == 0xFFFF ? room : u16(from + 2) * (uint64_t)repeats % (room + 1);
    }
    uint8_t counts[4 * MAX_SPANS + 4], again[4 * MAX_SPANS + 4];
    chunker_chunks first = {0};
    for (int level = SIMD_PORTABLE; level <= SIMD_AVX512; level++) {
        if (simd_set((enum simd_level)level)) {
            continue;
        }
        chunker_chunks chunks = {0};
        demand(chunker_cut_hash(data, spans, count, &rule, is_open, level ? again : counts, &chunks) == 0,
               "no memory");
        if (level == SIMD_PORTABLE) {
            check_chunks(data, spans, count, &rule, is_open, counts, &chunks);
            first = chunks;
            continue;
        }
        demand(chunks.count == first.count && memcmp(counts, again, 4 * count) == 0, "other counts");
        demand(chunks.count == 0 || (memcmp(chunks.lengths, first.lengths, 4 * chunks.count) == 0 &&
                                     memcmp(chunks.ids, first.ids, 32 * chunks.count) == 0),
               "other chunks");
        chunker_free(&chunks);
    }
    chunker_free(&first);
    free(data);
    return 0;
}
