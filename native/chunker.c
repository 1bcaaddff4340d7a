#include "chunker.h"

#include <stdlib.h>
#include <string.h>

#include "blake3.h"
#include "bytes.h"

static int reserve(chunker_chunks *chunks, blake3_batch *batch);
static int is_zero(const uint8_t *data, size_t size);

void chunker_free(chunker_chunks *chunks) {
    free(chunks->lengths);
    free(chunks->ids);
    *chunks = (chunker_chunks){0};
}

int chunker_cut_hash(const uint8_t *data, const chunker_span *spans, size_t span_count,
                     const cdc_rule *rule, int is_open, uint8_t *counts, chunker_chunks *chunks) {
    cdc_walk walk;
    blake3_batch *batch = blake3_batch_new();
    if (!batch) {
        return -1;
    }
    for (size_t i = 0; i < span_count; i++) {
        const uint8_t *at = data + spans[i].offset;
        size_t start = 0, length;
        uint32_t count = 0;
        cdc_begin(&walk, at, (size_t)spans[i].size);
        while ((length = cdc_next(&walk, rule, start, is_open && i + 1 == span_count))) {
            if (chunks->count == chunks->room && reserve(chunks, batch)) {
                blake3_batch_free(batch);
                return -1;
            }
            uint8_t *id = chunks->ids + chunks->count * BLAKE3_SIZE;
            store_le32(chunks->lengths + chunks->count * 4, (uint32_t)length);
            if (is_zero(at + start, length)) {
                memset(id, 0, BLAKE3_SIZE);
            } else {
                blake3_batch_add(batch, at + start, length, id);
            }
            chunks->count++;
            count++;
            start += length;
        }
        store_le32(counts + i * 4, count);
    }
    blake3_batch_flush(batch);
    blake3_batch_free(batch);
    return 0;
}

int chunker_cut(const uint8_t *data, size_t size, const cdc_rule *rule, chunker_chunks *chunks) {
    cdc_walk walk;
    size_t start = 0, length;
    cdc_begin(&walk, data, size);
    while ((length = cdc_next(&walk, rule, start, 0))) {
        if (chunks->count == chunks->room && reserve(chunks, NULL)) {
            return -1;
        }
        store_le32(chunks->lengths + chunks->count++ * 4, (uint32_t)length);
        start += length;
    }
    return 0;
}

/* Room for one more. IDs that the batch has promised are written before their place moves. */
static int reserve(chunker_chunks *chunks, blake3_batch *batch) {
    size_t room = chunks->room ? chunks->room * 2 : 256;
    uint8_t *lengths = realloc(chunks->lengths, room * 4);
    if (!lengths) {
        return -1;
    }
    chunks->lengths = lengths;
    if (batch) {
        blake3_batch_flush(batch);
        uint8_t *ids = realloc(chunks->ids, room * BLAKE3_SIZE);
        if (!ids) {
            return -1;
        }
        chunks->ids = ids;
    }
    chunks->room = room;
    return 0;
}

/* Equal to itself one byte further on; memcmp leaves at the first byte that is not zero. */
static int is_zero(const uint8_t *data, size_t size) {
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}
