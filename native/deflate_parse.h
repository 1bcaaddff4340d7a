/* A walk through gzip: members to plain bytes, tokens and events, as many whole blocks as are wanted.
 *
 * Source: RFC 1951 (DEFLATE), RFC 1952 (gzip).
 */
#ifndef LAYERSTORE_DEFLATE_PARSE_H
#define LAYERSTORE_DEFLATE_PARSE_H

#include <stddef.h>
#include <stdint.h>

#include "deflate.h"

enum deflate_parse_status {
    PARSE_OK,        /* as much as was wanted, or all there is */
    PARSE_NEED_DATA, /* a segment does not end in this data */
    PARSE_BAD,       /* not gzip, or more than the limits allow in one segment */
    PARSE_NO_MEMORY,
};

enum {
    PARSE_MAX_PLAIN = 8 << 20,   /* bytes of a segment: a block of zlib has up to 4.2 MB */
    PARSE_MAX_EVENTS = 1 << 18,  /* blocks, headers and trailers of a segment */
    PARSE_MAX_HEADER = 1 << 16,  /* bytes of a gzip header */
    PARSE_TRAILER = 8,           /* CRC-32 and size of a member */
};

enum deflate_event_kind { EVENT_HEADER, EVENT_BLOCK, EVENT_TRAILER };

/* What stands in the compressed bytes, in order. */
typedef struct {
    uint8_t kind;
    uint8_t type;     /* of a block */
    uint8_t is_final; /* of a block */
    uint8_t padding;  /* value of the bits up to the next byte, of a stored block and of a trailer */
    uint32_t tokens;
    uint32_t plain;    /* bytes */
    uint64_t bit;      /* where the header of a dynamic block, a gzip header or a trailer begins */
    uint32_t bit_size; /* of it */
} deflate_event;

typedef struct {
    /* in */
    const uint8_t *data;
    size_t size;
    int is_last;     /* nothing follows the data */
    uint64_t bit;    /* where to begin, and, after PARSE_OK, where the segment ends */
    int at_header;   /* a member begins there */
    size_t history;  /* bytes that `plain` begins with */
    size_t floor;    /* before this byte of `plain`, no match reaches */
    size_t wanted;   /* plain bytes: the segment ends with the first block behind them */
    size_t ahead;    /* plain bytes that are wanted behind the segment, of the same member */
    /* out, from scratch_take */
    uint8_t *plain; /* the history, the segment, what is ahead */
    size_t plain_size, plain_room;
    size_t end; /* of the segment in `plain` */
    deflate_token *tokens;
    size_t token_count, token_room;
    deflate_event *events;
    size_t event_count, event_room;
    size_t members; /* trailers in the segment */
} deflate_segment;

enum deflate_parse_status deflate_parse(deflate_segment *segment);

/* The code lengths in the header of a dynamic block at `*bit`, which moves behind it: those of literals and lengths,
 * then those of distances; `lengths` holds DEFLATE_LITERALS + DEFLATE_DISTANCES. -1: not such a header. */
int deflate_read_lengths(const uint8_t *data, size_t size, uint64_t *bit, uint8_t *lengths,
                         unsigned *literal_count, unsigned *distance_count);

/* The code lengths of a fixed block, in the same form, with all codes. */
void deflate_fixed_lengths(uint8_t *lengths);

void deflate_segment_free(deflate_segment *segment);

#endif
