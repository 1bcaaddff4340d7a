/* Cut spans into chunks and name each by its BLAKE3: cdc.h and blake3.h in one pass over the data. */
#ifndef LAYERSTORE_CHUNKER_H
#define LAYERSTORE_CHUNKER_H

#include <stddef.h>
#include <stdint.h>

#include "cdc.h"

typedef struct {
    uint64_t offset;
    uint64_t size;
} chunker_span;

/* Grown with malloc; integers little endian. Start from {0}, end with chunker_free. */
typedef struct {
    uint8_t *lengths; /* u32 per chunk */
    uint8_t *ids;     /* 32 bytes per chunk; zeros for a hole; NULL if none were asked for */
    size_t count;
    size_t room;
} chunker_chunks;

void chunker_free(chunker_chunks *chunks);

/* Append the chunks of all spans (which lie inside data) and write the number per span, u32, to
 * `counts`. With `is_open` the last span is open. Returns -1 if there is no memory. */
int chunker_cut_hash(const uint8_t *data, const chunker_span *spans, size_t span_count,
                     const cdc_rule *rule, int is_open, uint8_t *counts, chunker_chunks *chunks);

/* Append the chunk lengths of one closed span, no IDs. */
int chunker_cut(const uint8_t *data, size_t size, const cdc_rule *rule, chunker_chunks *chunks);

#endif
